-- Appends outcomes to the stream, all or none: nothing that was acknowledged is ever dropped to make room.
-- KEYS: stream
-- ARGV: most entries, then one outcome each
if redis.call('XLEN', KEYS[1]) + #ARGV - 1 > tonumber(ARGV[1]) then
  return redis.error_reply('BACKLOG ' .. ARGV[1] .. ' outcomes are kept or wait for the feedback consumer')
end
for i = 2, #ARGV do
  redis.call('XADD', KEYS[1], '*', 'o', ARGV[i])
end
return #ARGV - 1
