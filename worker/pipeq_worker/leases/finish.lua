-- Ends tasks: stores and publishes each result and acknowledges its message, if the task has not ended before and its
-- lease is still ours. A task that is to be retried goes into the set of waiting messages instead.
--
-- KEYS[1]  hash of running marks     KEYS[2] hash of unacknowledged messages     KEYS[3] sorted set of leases
-- KEYS[4..] record key, dead-letter list and set of waiting messages of each task, in turn; then of each pack whose rows
--          were read: the set of waiting messages
-- ARGV[1]  most messages kept in a dead-letter list; ARGV[2] number of tasks; ARGV[3] seconds since the epoch
-- ARGV[4..] of each task, in turn: its id; its tag (empty: not one of our leases, its message is acknowledged
--          elsewhere); its record; the record's lifetime in seconds (0: for ever); a dead letter (empty for none); when a
--          retry is due, in seconds since the epoch (empty for none); the waiting message; the event of its end, as a
--          list in JSON (empty: what its record says). Then of each pack whose rows were read, in turn: its place among
--          the tasks; what is counted, in JSON (see pipeq/contract/job.lua, which stands above this text, too); its
--          outcomes in JSON; and the waiting messages of rows that go on alone, as a list of lists in JSON: when it is
--          due, the message, and its field and its text among the packs that have not ended
-- Reply: for each task 1 if it was stored, 2 if it was stored but its dead letter was refused, 0 if it had ended before,
-- -1 if its lease is gone, -2 if it cannot wait for its next try; with -1 and -2 nothing was done.
-- Then 1 if events are kept, otherwise 0: they need not be given then.
--
-- The function `has_ended` is in the lines that stand above this text: pipeq.contract.record.LUA.
--
-- Any client may have written anything under these keys. A value that is no record counts as absent, and a key of
-- another type affects only its own task.

local function refused(reply)
  return type(reply) == 'table' and reply.err
end

local count, now = tonumber(ARGV[2]), ARGV[3]
local records, tags, packs = {}, {}, {}
for i = 1, count do
  records[i], tags[i] = KEYS[i * 3 + 1], ARGV[4 + (i - 1) * 8 + 1]
end
for at = 4 + count * 8, #ARGV, 4 do
  packs[tonumber(ARGV[at])] = {
    about = cjson.decode(ARGV[at + 1]),
    outcomes = ARGV[at + 2],
    alone = cjson.decode(ARGV[at + 3]),
    waiting = KEYS[4 + count * 3 + (at - 4 - count * 8) / 4],
  }
end

-- Lets those rows of a pack wait that go on alone, unless its job does not wait for it any more. Returns whether they do.
local function rows_wait(pack)
  pack.is_open = is_open(pack.about)
  if not pack.is_open then
    return true
  end
  for _, one in ipairs(pack.alone) do
    if refused(redis.pcall('ZADD', pack.waiting, one[1], one[2])) then
      return false
    end
  end
  return true
end

-- MGET returns nothing for a key that holds no string, and SET replaces such a key.
local before = redis.call('MGET', unpack(records))
local leases = redis.call('ZMSCORE', KEYS[3], unpack(tags))
-- This write raises if Redis accepts no writes. ZREM of nothing also lets a Redis whose memory is full accept the
-- others.
redis.call('ZREM', KEYS[3], '')
local kept = events_kept()
local reply, ids, acknowledged = {}, {}, {}
for i = 1, count do
  local at = 4 + (i - 1) * 8
  if tags[i] ~= '' and not leases[i] then
    reply[i] = -1
  else
    if has_ended(before[i]) then
      reply[i] = 0
    else
      local record, lifetime, letter, due = ARGV[at + 2], tonumber(ARGV[at + 3]), ARGV[at + 4], ARGV[at + 5]
      reply[i] = 1
            -- The waiting message is written first, because a message that cannot wait must not be acknowledged.
      if due ~= '' and refused(redis.pcall('ZADD', KEYS[i * 3 + 3], due, ARGV[at + 6])) then
        reply[i] = -2
      elseif packs[i] and not rows_wait(packs[i]) then
        reply[i] = -2
      else
        if lifetime > 0 then
          redis.call('SET', records[i], record, 'EX', lifetime)
        else
          redis.call('SET', records[i], record)
        end
        redis.call('PUBLISH', records[i], record)
        if kept then
          if ARGV[at + 7] == '' then
            say_record(kept, ARGV[at], record)
          else
            say_event(kept, ARGV[at], unpack(cjson.decode(ARGV[at + 7])))
          end
        end
        -- A job that somebody has overwritten counts nothing, and that is no concern of other tasks.
        if packs[i] then
          pcall(end_pack, packs[i], ARGV[at], now)
        elseif due == '' and pack_of(ARGV[at]) then
          pcall(task_ended, ARGV[at], record, now)
        end
        if letter ~= '' then
          if refused(redis.pcall('LPUSH', KEYS[i * 3 + 2], letter)) then
            reply[i] = 2
          else
            redis.call('LTRIM', KEYS[i * 3 + 2], 0, ARGV[1] - 1)
          end
        end
      end
    end
    if reply[i] ~= -2 then
      ids[#ids + 1] = ARGV[at]
      if tags[i] ~= '' then
        acknowledged[#acknowledged + 1] = tags[i]
      end
    end
  end
end
-- Acknowledged last: if a write above raised, the messages are still there.
if #ids > 0 then
  redis.pcall('HDEL', KEYS[1], unpack(ids))
end
if #acknowledged > 0 then
  redis.call('HDEL', KEYS[2], unpack(acknowledged))
  redis.call('ZREM', KEYS[3], unpack(acknowledged))
end
reply[count + 1] = kept and 1 or 0
return reply
