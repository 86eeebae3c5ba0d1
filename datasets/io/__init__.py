"""Files to arrays: decoding, the node's cache, remote roots."""
