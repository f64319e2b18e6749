-- Appends the events of one user: deduplicated by id, trimmed, versioned, all or nothing.
-- KEYS: version, window, one history per event type that occurs
-- ARGV: window bytes, ttl seconds (0: none), backfill (0 or 1),
--       then per history: record width, records kept, position of the arrival time (1-based, int64),
--       then per event: id hash (8 bytes), history number (1-based), record
local histories = #KEYS - 2
local window_bytes, ttl, backfill = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local first = 3 + 3 * histories

local function known(seen, id)
  local from = 1
  while true do
    local at = string.find(seen, id, from, true)
    if not at then return false end
    if (at - 1) % 8 == 0 then return true end
    from = at + 1
  end
end

-- A backfill may repeat far more events than the window remembers, or come after live ones: it only ever
-- appends at or after the newest stored arrival, so that histories stay in arrival order.
local newest = {}
if backfill then
  for h = 1, histories do
    local width = tonumber(ARGV[1 + 3 * h])
    local tail = redis.call('GETRANGE', KEYS[2 + h], -width, -1)
    if #tail == width then newest[h] = struct.unpack('<i8', tail, tonumber(ARGV[3 + 3 * h])) end
  end
end

local seen = redis.call('GET', KEYS[2]) or ''
local stored, duplicates = 0, 0
for i = first + 1, #ARGV, 3 do
  local id, h, record = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local late = newest[h] and struct.unpack('<i8', record, tonumber(ARGV[3 + 3 * h])) < newest[h]
  if late or known(seen, id) then
    duplicates = duplicates + 1
  else
    redis.call('APPEND', KEYS[2 + h], record)
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
    local width, kept = tonumber(ARGV[1 + 3 * h]), tonumber(ARGV[2 + 3 * h])
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
