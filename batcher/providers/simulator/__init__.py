"""A provider to test against: Groq's limits, answers and faults, over real HTTP and in memory."""
