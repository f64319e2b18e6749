-- Appends outcomes to the stream, all or none. What is to be counted is never dropped to make room.
-- KEYS: stream
-- ARGV: most entries, entries to keep when nobody counts them (0: somebody does), then one outcome each
if tonumber(ARGV[2]) > 0 then
  redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[2])
elseif redis.call('XLEN', KEYS[1]) + #ARGV - 2 > tonumber(ARGV[1]) then
  return redis.error_reply('BACKLOG ' .. ARGV[1] .. ' outcomes are kept or wait: is there a feedback consumer?')
end
for i = 3, #ARGV do
  redis.call('XADD', KEYS[1], '*', 'o', ARGV[i])
end
return #ARGV - 2
