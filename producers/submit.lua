-- Queues tasks of one pipeline: each gets its QUEUED record and its message, all or none.
-- An id that already has a record is left alone, so that submitting it again does no harm.
--
-- KEYS[1]  hash of known pipelines          KEYS[2]  sorted set of the pipeline's workers
-- KEYS[3]  list to push to                  KEYS[4] sorted set of messages that wait for their time
-- KEYS[5..] record key of each task
-- ARGV[1]  pipeline                         ARGV[2]  1: refuse a pipeline that no worker ever served
-- ARGV[3]  a worker not heard of since this time (seconds since the epoch) is dead
-- ARGV[4]  lifetime of a record in seconds  ARGV[5] when they are due, seconds since the epoch; 0 for now
-- ARGV[6..] record and message of each task, in turn
-- Reply: -1 for an unknown pipeline, else the number of live workers.
if ARGV[2] == '1' and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return -1
end
for i = 5, #KEYS do
  local at = 6 + (i - 5) * 2
  if redis.call('SET', KEYS[i], ARGV[at], 'NX', 'EX', ARGV[4]) then
    if ARGV[5] == '0' then
      redis.call('LPUSH', KEYS[3], ARGV[at + 1])
    else
      redis.call('ZADD', KEYS[4], ARGV[5], cjson.encode({list = KEYS[3], message = ARGV[at + 1]}))
    end
  end
end
return redis.call('ZCOUNT', KEYS[2], ARGV[3], '+inf')
