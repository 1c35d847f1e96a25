"""What does the gateway cost, beside others? ``python -m bench.gateway`` (or ``make bench-gateway``)."""
