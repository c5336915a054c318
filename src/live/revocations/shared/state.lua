-- What a fleet has revoked. KEYS: its state (when it was born, by the clock of Redis; the revision of the last change), the entries by id
-- ("before expires revoked", the first two empty where there is none), the ids that were taken back, all of these by the revision of their
-- last change, and by the second in which they are forgotten.
local STATE, ENTRIES, TAKEN_BACK, CHANGES, EXPIRIES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local time = redis.call('TIME')
local second = tonumber(time[1])
-- Everything is read before anything is written: a key that is not ours ends the script here.
local known = redis.call('HMGET', STATE, 'born', 'revision')
local born, revision = tonumber(known[1] or 0), tonumber(known[2] or 0)
local held = redis.call('HLEN', ENTRIES)
local changed = redis.call('ZCARD', CHANGES)
redis.call('ZCARD', EXPIRIES)
-- A Redis that evicts keys as it likes has lost a part: who read the rest would admit whom that part refuses.
if held + redis.call('SCARD', TAKEN_BACK) ~= changed or (born == 0 and changed > 0) then
    return redis.error_reply('ERR a part of the revocations is lost')
end

-- Forgets what is over, so many at a time, since nobody else is served meanwhile.
local function forget(most)
    local over = redis.call('ZRANGEBYSCORE', EXPIRIES, '-inf', second, 'LIMIT', 0, most)
    for _, id in ipairs(over) do
        held = held - redis.call('HDEL', ENTRIES, id)
        redis.call('SREM', TAKEN_BACK, id)
        redis.call('ZREM', CHANGES, id)
        redis.call('ZREM', EXPIRIES, id)
    end
    return #over
end

local function change(id)
    if born == 0 then
        born = second * 1000000 + tonumber(time[2])
        redis.call('HSET', STATE, 'born', born)
    end
    revision = revision + 1
    redis.call('HSET', STATE, 'revision', revision)
    redis.call('ZADD', CHANGES, revision, id)
end
