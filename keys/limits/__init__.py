"""Rate limits: in process, or in Redis for several processes. One contract."""
