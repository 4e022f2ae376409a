"""What stands behind every published number: learning and throughput suites, their JSON records, and the report made from them."""
