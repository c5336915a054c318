-- Settles what nodes did on their own, each key for itself. Four numbers more for each: units that are charged whatever is left; units
-- that come back; when those were taken, by Redis' clock; units wanted as a lease. Answers the time, and for each the lease and the state.

-- No lease takes more than this share of what is left, so that the last units are not all lent to one node.
local SHARE = 4

-- How much of what comes back was not given back by time already: none of an earlier window, nor what has run out of a bucket since. A turn
-- in a queue passes unused: those behind it were told theirs.
local function returned(count, back, taken)
    if is_window(count) then
        return taken >= count.index * count.window and back or 0
    elseif count.algorithm == TOKEN_BUCKET then
        return math.max(0, back - math.max(0, now - taken) * count.limit / count.window)
    end
    return 0
end

local answer = {now}
for i, key in ipairs(KEYS) do
    local first = (i - 1) * (NUMBERS + 4) + 1
    local count = read(terms(key, first))
    local debt, back, taken, wanted = unpack(ARGV, first + NUMBERS, first + NUMBERS + 3)
    debt, back, taken, wanted = debt + 0, back + 0, taken + 0, wanted + 0
    add(count, -returned(count, back, taken))
    add(count, debt)
    local most = count.algorithm == TOKEN_BUCKET and count.capacity or count.limit
    local left = math.max(0, math.floor(most - used(count)))
    local lease = math.min(wanted, math.ceil(left / SHARE))
    add(count, lease)
    write(count)
    local first_answer = (i - 1) * (STATE + 1) + 2
    answer[first_answer] = lease
    answer[first_answer + 1], answer[first_answer + 2], answer[first_answer + 3] = state(count)
end
return answer
