-- http-request lua.roomd_authorize <url>: asks the gateway who this is and where its stream is to go. Sets
--     txn.roomd_status          what the gateway answered; 502 when it did not
--     txn.roomd_authorization   "Bearer <ticket>"
--     txn.roomd_first           host:port of the first endpoint, which is the name of its server in roomd.cfg
local passed_on = { "cookie", "authorization", "origin", "user-agent", "accept-language" }

local function header(headers, name)
    return headers and headers[name] and headers[name][0]
end

local function authorize(txn, url)
    local headers = txn.http:req_get_headers()
    local question = { ["x-original-uri"] = { txn.f:url() } }
    for _, name in ipairs(passed_on) do
        local value = header(headers, name)
        if value then
            question[name] = { value }
        end
    end
    local answer = core.httpclient():get { url = url, headers = question }
    txn:set_var("txn.roomd_status", answer and answer.status and answer.status > 0 and answer.status or 502)
    if answer and answer.status == 204 then
        txn:set_var("txn.roomd_authorization", header(answer.headers, "roomd-authorization") or "")
        local first = (header(answer.headers, "roomd-first") or ""):match("^https?://([^/]+)")
        if first then
            txn:set_var("txn.roomd_first", first)
        end
    end
end

core.register_action("roomd_authorize", { "http-req" }, authorize, 1)
