-- One step of the feedback consumer, all or nothing. Nothing changes unless the caller owns the lease and nobody has
-- committed since it read: a consumer that was replaced, or is told twice, cannot count anything again.
-- KEYS: lease, state, stream, minutes, then hashes to change, then keys to delete
-- ARGV: token, lease ms, number of the commit before this one, position in the stream, first open minute,
--       entries of the stream that are counted by this, entries to keep once they are counted, number of hashes, per hash: number of pairs and the pairs
--       (an empty value deletes the field), number of minutes that go, those, number of minutes that come, those
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if tonumber(redis.call('HGET', KEYS[2], 'commits') or '0') ~= tonumber(ARGV[3]) then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], 'commits', ARGV[3] + 1, 'position', ARGV[4], 'first_open', ARGV[5])
local at = 9
local hashes = tonumber(ARGV[8])
for h = 1, hashes do
  local pairs_here = tonumber(ARGV[at])
  at = at + 1
  for i = 1, pairs_here do
    if ARGV[at + 1] == '' then
      redis.call('HDEL', KEYS[4 + h], ARGV[at])
    else
      redis.call('HSET', KEYS[4 + h], ARGV[at], ARGV[at + 1])
    end
    at = at + 2
  end
end
for _, command in ipairs({'ZREM', 'ZADD'}) do
  local minutes = tonumber(ARGV[at])
  for i = at + 1, at + minutes do
    if command == 'ZADD' then
      redis.call('ZADD', KEYS[4], ARGV[i], ARGV[i])
    else
      redis.call('ZREM', KEYS[4], ARGV[i])
    end
  end
  at = at + minutes + 1
end
for k = 5 + hashes, #KEYS do
  redis.call('UNLINK', KEYS[k])
end
-- The stream is cut to what waits and as many counted entries as are kept.
if tonumber(ARGV[6]) > 0 then
  local counted = redis.call('HINCRBY', KEYS[2], 'counted', ARGV[6])
  local facts, added = redis.call('XINFO', 'STREAM', KEYS[3]), counted
  for i = 1, #facts, 2 do
    if facts[i] == 'entries-added' then added = facts[i + 1] end
  end
  redis.call('XTRIM', KEYS[3], 'MAXLEN', '~', math.max(0, added - counted) + tonumber(ARGV[7]))
end
return 1
