-- Appends the events of one user: deduplicated by id, trimmed, versioned, all or nothing.
-- KEYS: version, window, one history per event type that occurs
-- ARGV: window bytes, ttl seconds (0: none), then per history: record width, records kept,
--       then per event: id hash (8 bytes), history number (1-based), record
local histories = #KEYS - 2
local window_bytes, ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local first = 2 + 2 * histories

local function known(seen, id)
  local from = 1
  while true do
    local at = string.find(seen, id, from, true)
    if not at then return false end
    if (at - 1) % 8 == 0 then return true end
    from = at + 1
  end
end

local seen = redis.call('GET', KEYS[2]) or ''
local stored, duplicates = 0, 0
for i = first + 1, #ARGV, 3 do
  local id = ARGV[i]
  if known(seen, id) then
    duplicates = duplicates + 1
  else
    redis.call('APPEND', KEYS[2 + tonumber(ARGV[i + 1])], ARGV[i + 2])
    seen = seen .. id
    stored = stored + 1
  end
end

local version = tonumber(redis.call('GET', KEYS[1]) or '0')
if stored > 0 then
  if #seen > window_bytes then seen = string.sub(seen, -window_bytes) end
  redis.call('SET', KEYS[2], seen)
  version = redis.call('INCRBY', KEYS[1], stored)
  for h = 1, histories do
    local width, kept = tonumber(ARGV[1 + 2 * h]), tonumber(ARGV[2 + 2 * h])
    -- Trimming rewrites the string, so it waits until a quarter more than what is kept has gathered.
    if redis.call('STRLEN', KEYS[2 + h]) > width * (kept + math.max(32, math.floor(kept / 4))) then
      redis.call('SET', KEYS[2 + h], redis.call('GETRANGE', KEYS[2 + h], -width * kept, -1))
    end
  end
  if ttl > 0 then
    for k = 1, #KEYS do redis.call('EXPIRE', KEYS[k], ttl) end
  end
end
return {stored, duplicates, version}
