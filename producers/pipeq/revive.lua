-- Gives a failed task a new life: its letter leaves the dead letters, its record says QUEUED, its message goes back on
-- its list, all in one step. Of two operators who do this at once, one finds the letter gone.
--
-- KEYS[1]  list of dead letters     KEYS[2] record of the task     KEYS[3] list for its message
-- KEYS[4]  hash of running marks
-- ARGV[1]  the letter     ARGV[2] SHA-1 of the record that its new record was made from (empty: there was none)
-- ARGV[3]  its new record, and ARGV[4] the record's lifetime in seconds     ARGV[5] the message     ARGV[6] the task's id
-- Reply: 1; 0 if the letter is gone; -1 if the record is another one meanwhile; with 0 and -1 nothing was done.

-- MGET returns nothing for a key that holds no string, and SET replaces such a key.
local record = redis.call('MGET', KEYS[2])[1]
if (record and redis.sha1hex(record) or '') ~= ARGV[2] then
  return -1
end
local kind = redis.call('TYPE', KEYS[3]).ok
if kind ~= 'list' and kind ~= 'none' then
  return redis.error_reply('WRONGTYPE ' .. KEYS[3] .. ' is no list')
end
-- The oldest letters are at the end of the list. This write comes first: a Redis whose memory is full accepts it, and
-- then those after it.
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 0 then
  return 0
end
-- A mark may be left from workers that died with the task; the new life begins without deaths.
redis.pcall('HDEL', KEYS[4], ARGV[6])
redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[4])
redis.call('LPUSH', KEYS[3], ARGV[5])
redis.call('PUBLISH', KEYS[2], ARGV[3])
local kept = events_kept()
if kept then
  say_record(kept, ARGV[6], ARGV[3])
end
return 1
