"""`bucketsim report`: one self-contained page for the folder of a result."""
