"""Images on one host: names, content by digest, safe unpacking, load/import/pull, sharing with other nodes."""
