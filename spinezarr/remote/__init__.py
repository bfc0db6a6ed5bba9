"""Objects of buckets and web servers: requests, retries, versions and errors."""
