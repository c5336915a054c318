-- Revokes all or none, in addition to what is revoked: what was stays at least as wide. ARGV: the most that may be held, and for each its
-- id, before, expires and when it was revoked. Answers when all this was born, 0 where there was no room.
local function widest(one, other)
    if one == '' or other == '' then
        return ''
    end
    return tonumber(one) >= tonumber(other) and one or other
end

local entries, new = {}, 0
for i = 2, #ARGV, 4 do
    local id, before, expires, revoked = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    local entry = redis.call('HGET', ENTRIES, id)
    if entry then
        local was_before, was_expires, was_revoked = string.match(entry, '^(%d*) (%d*) (%d+)$')
        if not was_revoked then
            return redis.error_reply('ERR an entry that no edgeward of this version writes')
        end
        before, expires, revoked = widest(was_before, before), widest(was_expires, expires), was_revoked
    else
        new = new + 1
    end
    entries[#entries + 1] = {id, before, expires, revoked}
end
forget(100)
if new > 0 and held + new > tonumber(ARGV[1]) then
    return 0
end
for _, entry in ipairs(entries) do
    local id, before, expires, revoked = unpack(entry)
    change(id)
    redis.call('SREM', TAKEN_BACK, id)
    redis.call('HSET', ENTRIES, id, before .. ' ' .. expires .. ' ' .. revoked)
    if expires == '' then
        redis.call('ZREM', EXPIRIES, id)
    else
        redis.call('ZADD', EXPIRIES, expires, id)
    end
end
return born
