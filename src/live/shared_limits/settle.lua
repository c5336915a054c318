-- Settles what nodes did on their own, each key for itself. Four numbers more for each: units that are charged whatever is left; units
-- that come back; when those were taken, by Redis' clock; units wanted as a lease. Answers the time, and for each the lease and the state.

-- No lease takes more than this share of what is left, so that the last units are not all lent to one node.
local SHARE = 4

local answer = {now}
for i, key in ipairs(KEYS) do
    local first = (i - 1) * (NUMBERS + 4) + 1
    local count = read(terms(key, first))
    local debt, back, taken, wanted = unpack(ARGV, first + NUMBERS, first + NUMBERS + 3)
    debt, back, taken, wanted = debt + 0, back + 0, taken + 0, wanted + 0
    -- Units that were taken in an earlier window are gone with it.
    if not is_window(count) or taken >= count.index * count.window then
        add(count, -back)
    end
    add(count, debt)
    local most = count.algorithm == TOKEN_BUCKET and count.capacity or count.limit
    local left = math.max(0, math.floor(most - used(count)))
    local lease = math.min(wanted, math.ceil(left / SHARE))
    add(count, lease)
    if debt + back + lease > 0 then
        write(count)
    end
    local first_answer = (i - 1) * (STATE + 1) + 2
    answer[first_answer] = lease
    answer[first_answer + 1], answer[first_answer + 2], answer[first_answer + 3] = state(count)
end
return answer
