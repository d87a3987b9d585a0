"""Reports: statistics, claims, tables and figures of Records."""
