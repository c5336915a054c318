// A client that knows a URL alone, by oauth4webapi: reads {"url", "port", "client_id", "client_secret"} on stdin, prints what it found on its way in.
import { text } from 'node:stream/consumers'

import * as oauth from 'oauth4webapi'

const { url, port, client_id, client_secret } = JSON.parse(await text(process.stdin))
// Resources and issuers are known without the port, which the trial's stage chooses.
const here = (address) => {
  const reached = new URL(address)
  reached.port = port
  return reached
}
const options = {
  [oauth.allowInsecureRequests]: true,
  [oauth.customFetch]: (address, request) => fetch(here(address), request),
}

const refused = await oauth
  .protectedResourceRequest('none', 'GET', new URL(url), undefined, undefined, options)
  .then(() => null, (error) => error)
const challenge = refused.cause.find(({ scheme }) => scheme === 'bearer').parameters

const resource = new URL(url)
const described = await oauth.processResourceDiscoveryResponse(resource, await oauth.resourceDiscoveryRequest(resource, options))
const told = await (await fetch(here(challenge.resource_metadata))).json()

const issuer = new URL(described.authorization_servers[0])
const server = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { ...options, algorithm: 'oauth2' }))
const parameters = new URLSearchParams({ scope: challenge.scope, resource: described.resource })
const client = { client_id }
const authentication = oauth.ClientSecretBasic(client_secret)
const granted = await oauth.processClientCredentialsResponse(
  server,
  client,
  await oauth.clientCredentialsGrantRequest(server, client, authentication, parameters, options),
)
const opened = await oauth.protectedResourceRequest(granted.access_token, 'GET', resource, undefined, undefined, options)
console.log(JSON.stringify({ challenge, described, told, status: opened.status, seen: await opened.json() }))
