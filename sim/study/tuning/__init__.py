"""Search of policy parameters for capacity and latency."""
