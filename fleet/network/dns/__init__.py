"""Names inside the cluster: a small DNS server process, and the tables it answers from."""
