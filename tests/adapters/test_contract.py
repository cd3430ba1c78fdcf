"""What every init owes, on every architecture: the contract of the routed adapter."""
