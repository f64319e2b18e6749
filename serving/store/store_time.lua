-- The clock of the server that holds a key: seconds and microseconds.
-- KEYS: any key there
return redis.call('TIME')
