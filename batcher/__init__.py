"""Runs a file of LLM requests and brings home exactly one result line for each."""
