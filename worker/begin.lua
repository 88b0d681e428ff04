-- Marks the tasks of a batch as running, and says which of them have ended meanwhile (cancelled, or done elsewhere).
-- A mark that is still there was left by a worker that died with the task in a batch.
--
-- KEYS[1]  hash of running marks           KEYS[2..] record key of each task
-- ARGV[1]  worker      ARGV[2] now, in seconds since the epoch
-- ARGV[3]  what the key of a living worker begins with
-- ARGV[4]  1: also mark tasks that a worker died with
-- ARGV[5..] id and number of retries of each task, in turn
-- Reply: for each task its deaths so far (-1: it has ended, do not run it) and its record (empty for none).
local FINAL = {SUCCESS = true, FAILURE = true, REVOKED = true}
local reply = {}
for i = 2, #KEYS do
  local id, retries = ARGV[i * 2 + 1], tonumber(ARGV[i * 2 + 2])
  local record = redis.call('GET', KEYS[i]) or ''
  local ok, fields = pcall(cjson.decode, record)
  if ok and type(fields) == 'table' and FINAL[fields.status] then
    redis.call('HDEL', KEYS[1], id)
    reply[#reply + 1] = -1
  else
    local deaths = 0
    local left = redis.call('HGET', KEYS[1], id)
    if left then
      left = cjson.decode(left)
      -- The mark of a worker that lives is no death: the message was delivered twice.
      local lives = left.worker == ARGV[1] or redis.call('EXISTS', ARGV[3] .. left.worker) == 1
      deaths = left.deaths + (lives and 0 or 1)
    end
    if deaths == 0 or ARGV[4] == '1' then
      redis.call('HSET', KEYS[1], id, cjson.encode({
        worker = ARGV[1], since = tonumber(ARGV[2]), deaths = deaths, attempt = retries + deaths + 1,
      }))
    end
    reply[#reply + 1] = deaths
  end
  reply[#reply + 1] = record
end
return reply
