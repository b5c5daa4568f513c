"""Words between processes: Docker Engine API rules, the dispatcher's messages, error bodies, the HTTP client, TLS in memory."""
