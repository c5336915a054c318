-- What the scripts share: the count of one limit and one key, read, changed and written back with a time to live.
-- Redis' own clock alone decides: the nodes of a fleet never agree on the time. Microseconds fit a double until the year 2255.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local FIXED, SLIDING, TOKEN_BUCKET, LEAKY_BUCKET = 0, 1, 2, 3
local NUMBERS = 5
local STATE = 3

-- The terms of the limit whose numbers begin at ARGV[first]: algorithm, limit, window, capacity (a bucket's), max_wait (a leaky one's).
local function terms(key, first)
    local argument = function(offset) return tonumber(ARGV[first + offset]) end
    return {
        key = key,
        algorithm = argument(0),
        limit = argument(1),
        window = argument(2),
        capacity = argument(3),
        max_wait = argument(4),
    }
end

local function is_window(count)
    return count.algorithm == FIXED or count.algorithm == SLIDING
end

local function turn(count, index)
    -- A clock that was set back keeps the counts: in the window that had begun, or, when it is far, in the one it now shows.
    if count.index == index + 1 then return end
    count.set_back = count.index > index
    if count.index < index then
        local next_to_it = count.index == index - 1 and count.algorithm == SLIDING
        count.previous = next_to_it and count.current or 0
        count.current = 0
    end
    count.index = index
end

-- A value that is not ours ends the script with an error before anything is written.
local function read(count)
    local stored = redis.call('GET', count.key)
    if is_window(count) then
        local index = math.floor(now / count.window)
        count.index, count.current, count.previous = index, 0, 0
        if stored then
            local at, current, previous = string.match(stored, '^(%d+) (%d+) (%d+)$')
            count.index, count.current, count.previous = at + 0, current + 0, previous + 0
            turn(count, index)
        end
        count.elapsed = math.max(0, now - count.index * count.window)
    else
        count.level = 0
        if stored then
            local level, at = string.match(stored, '^(%S+) (%d+)$')
            count.level = math.max(0, level - math.max(0, now - at) * count.limit / count.window)
            count.set_back = at + 0 > now
        end
    end
    return count
end

-- What is used now, rounded up: never in the caller's favour.
local function used(count)
    if is_window(count) then
        return count.current + math.ceil(count.previous * (count.window - count.elapsed) / count.window)
    end
    return count.level
end

local function fits(count, cost)
    if count.algorithm == LEAKY_BUCKET then
        local wait = count.level * count.window / count.limit
        return count.level <= count.capacity and wait <= count.max_wait and cost <= count.limit
    end
    local most = count.algorithm == TOKEN_BUCKET and count.capacity or count.limit
    return used(count) + cost <= most
end

local function add(count, units)
    if is_window(count) then
        count.current = math.max(0, count.current + units)
    else
        count.level = math.max(0, count.level + units)
    end
end

local function write(count)
    local value, lasts
    if is_window(count) then
        value = string.format('%.0f %.0f %.0f', count.index, count.current, count.previous)
        lasts = count.window * (count.algorithm == SLIDING and 2 or 1) - count.elapsed
    else
        value = string.format('%.17g %.0f', count.level, now)
        lasts = count.level * count.window / count.limit
    end
    redis.call('SET', count.key, value, 'PX', string.format('%.0f', math.ceil(lasts / 1000) + 1))
end

-- Three integers: current, previous and the microseconds left of a window; or a bucket's level in thousandths, twice nothing.
local function state(count)
    if is_window(count) then
        return count.current, count.previous, count.window - count.elapsed
    end
    return math.ceil(count.level * 1000), 0, 0
end
