-- Replaces one history of a user, unless anything has been stored for the user since it was read.
-- KEYS: version, history, history of the other layout
-- ARGV: version as it was read ('' for none), new bytes, whether to delete the other layout's history (0 or 1)
-- Returns 1 when done, 0 when the user has changed meanwhile.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then
  local left = redis.call('PTTL', KEYS[3])
  for k = 1, 2 do -- what comes into being here lives as long as what it was made from
    local is_new = redis.call('EXISTS', KEYS[k]) == 0
    if k == 1 then
      redis.call('INCR', KEYS[1]) -- states of the bytes before are of an older version
    else
      redis.call('SET', KEYS[2], ARGV[2], 'KEEPTTL')
    end
    if is_new and left > 0 then redis.call('PEXPIRE', KEYS[k], left) end
  end
end
if ARGV[3] == '1' then redis.call('UNLINK', KEYS[3]) end
return 1
