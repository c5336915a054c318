-- Charges every limit of a request or none. A number more for each: the cost. Answers the time, and for each whether it would admit and
-- its state.
local counts, admitted = {}, true
for i, key in ipairs(KEYS) do
    local first = (i - 1) * (NUMBERS + 1) + 1
    local count = read(terms(key, first))
    count.cost = tonumber(ARGV[first + NUMBERS])
    count.fits = fits(count, count.cost)
    admitted = admitted and count.fits
    counts[i] = count
end
local answer = {now}
for i, count in ipairs(counts) do
    if admitted then
        add(count, count.cost)
    end
    -- A refused request writes nothing, but where it would be refused for as long as the clock was set back.
    if admitted or count.set_back then
        write(count)
    end
    local first = (i - 1) * (STATE + 1) + 2
    answer[first] = count.fits and 1 or 0
    answer[first + 1], answer[first + 2], answer[first + 3] = state(count)
end
return answer
