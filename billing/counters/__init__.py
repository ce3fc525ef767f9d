"""What budgets have used and reserved right now: in process, or in Redis for several processes. One contract."""
