"""What must survive a power cut: keys, durable jobs, the ledger; and blobs."""
