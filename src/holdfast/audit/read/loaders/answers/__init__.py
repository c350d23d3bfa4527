"""Answers of servers and of agents on servers: found in any record, with what stands beside."""
