-- Reads what a worker must know of some jobs, and takes out of their set what is none.
--
-- KEYS[1]  set of job ids
-- ARGV[1]  most jobs     ARGV[2] most bytes of an id     ARGV[3] most bytes of a value     ARGV[4..] names of fields
-- Reply: of each job its id, its number of packs that have not ended, and its fields (empty for none).
--
-- Names in capitals that are not set here are in the lines that stand above this text: pipeq.contract.job.lua().
--
-- Any client may have written anything under these keys, of any length: what is longer than a worker would write counts
-- as absent, so that no worker has to hold it.

local ids, reply = redis.pcall('SRANDMEMBER', KEYS[1], ARGV[1]), {}
for _, id in ipairs(ids.err and {} or ids) do
  local job, has_any = JOB .. id, #id <= tonumber(ARGV[2])
  local one = {id}
  if has_any then
    has_any = redis.pcall('HEXISTS', job, 'state') == 1
    local open = redis.pcall('HLEN', JOB_PACKS .. id)
    one[2] = type(open) == 'number' and open or 0
  end
  for at = 4, has_any and #ARGV or 0 do
    local is_short = redis.call('HSTRLEN', job, ARGV[at]) <= tonumber(ARGV[3])
    one[at - 1] = is_short and redis.call('HGET', job, ARGV[at]) or ''
  end
  if has_any then
    reply[#reply + 1] = one
  else
    redis.call('SREM', KEYS[1], id)
  end
end
return reply
