"""Words between processes: the Docker Engine API's wire rules, the dispatcher's messages, error bodies, the HTTP client."""
