-- Replaces a task's record, and publishes it, if nobody changed it meanwhile.
--
-- KEYS[1]  the record, which is also the channel it is published on
-- ARGV[1]  the record as it was read; empty for none    ARGV[2]  the new record
-- ARGV[3]  lifetime of the new record in seconds
-- Reply: 1 if it was replaced, else 0.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('PUBLISH', KEYS[1], ARGV[2])
return 1
