"""From records to figures, from replications to intervals and verdicts."""
