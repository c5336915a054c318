// A client that holds a key (npm oauth4webapi): it gets tokens that are bound to it, and proves it with each request.
//
// node dpop.mjs ISSUER, then one JSON command per line on stdin, each answered by one line of JSON on stdout:
//   {"obtain": {"resource": "...", "scope": "..."}}   a token from the issuer:          {"access_token": "...", "token_type": "dpop"}
//   {"ask": "http://...", "method": "GET"}            a request with that token:        {"status": 200, "headers": {...}, "sent": [{...}]}
//   {"prove": "http://...", "method": "GET"}          the headers of such a request, which is not sent
// `sent` are the headers of every request that it took: the library sends a second one when it is told a nonce, and only then.
import { createInterface } from 'node:readline'

import * as oauth from 'oauth4webapi'

const issuer = new URL(process.argv[2])
const insecure = { [oauth.allowInsecureRequests]: true }
const client = { client_id: 'shop' }
const secret = oauth.ClientSecretBasic('shop-secret')
const server = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, insecure))
const DPoP = oauth.DPoP(client, await oauth.generateKeyPair('ES256'))

let token

async function obtain({ obtain }) {
  const options = { ...insecure, DPoP }
  const answer = await oauth.clientCredentialsGrantRequest(server, client, secret, new URLSearchParams(obtain), options)
  const { access_token, token_type } = await oauth.processClientCredentialsResponse(server, client, answer)
  token = access_token
  return { access_token, token_type }
}

async function ask({ ask, method }) {
  const sent = []
  const request = () =>
    resource(ask, method, (url, options) => {
      sent.push(options.headers)
      return fetch(url, options)
    })
  const answer = await request()
    .catch((error) => {
      if (oauth.isDPoPNonceError(error)) return request()
      throw error
    })
    .catch((error) => {
      if (error instanceof oauth.WWWAuthenticateChallengeError) return error.response
      throw error
    })
  return { status: answer.status, headers: Object.fromEntries(answer.headers), sent }
}

async function prove({ prove, method }) {
  let headers
  await resource(prove, method, async (_, options) => {
    headers = options.headers
    return new Response()
  })
  return headers
}

function resource(url, method, send) {
  const options = { ...insecure, DPoP, [oauth.customFetch]: send }
  return oauth.protectedResourceRequest(token, method, new URL(url), undefined, undefined, options)
}

const commands = { obtain, ask, prove }
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  const [name] = Object.keys(command)
  console.log(JSON.stringify(await commands[name](command)))
}
process.exit()
