// An OpenID provider (npm oidc-provider) whose key set changes while it serves, as at a real rotation.
//
// node provider.mjs PORT, then one JSON command per line on stdin, each answered by one line on stdout:
//   {"publish": ["ES256-1", "ES256-2"], "sign": {"ES256": "ES256-2"}}
// names the keys of the key set and which of them signs for its algorithm. A key is made when it is first named.
//   "gateway": {"keys": [...]} beside them is the key set of the client that introspects with a signed proof.
// A client asks for the token it wants by the resource it names: https://orders.test/ES256?audience=orders&ttl=300, or one that says nothing itself
// with &format=opaque. The gateway's clients exchange such a token (RFC 8693) for one for another resource, but never for the audience `nobody`.
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'

import { createLocalJWKSet, exportJWK, generateKeyPair, jwtVerify } from 'jose'

// Node 20 has no URL.parse, which oidc-provider reads resources with.
URL.parse ??= (text) => (URL.canParse(text) ? new URL(text) : null)
// Its notices must not stand between our answers.
console.info = console.error
const { Provider, errors } = await import('oidc-provider')

const port = Number(process.argv[2])
const issuer = `http://127.0.0.1:${port}`
const keys = new Map()

async function key(kid) {
  if (!keys.has(kid)) {
    const alg = kid.split('-')[0]
    const { privateKey } = await generateKeyPair(alg, { extractable: true })
    keys.set(kid, { ...(await exportJWK(privateKey)), kid, alg, use: 'sig' })
  }
  return keys.get(kid)
}

const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange'
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token'

async function publicKey(kid) {
  const { kty, crv, x, y, n, e, alg } = await key(kid)
  return { kty, crv, x, y, n, e, alg, kid }
}

// Clients that may ask what a token stands for and exchange it, one for each way to prove it.
function gatewayClient(client_id, token_endpoint_auth_method, more) {
  return { client_id, token_endpoint_auth_method, grant_types: [EXCHANGE], redirect_uris: [], response_types: [], ...more }
}

function resourceServer(resource, sign) {
  const { pathname, searchParams } = new URL(resource)
  const alg = pathname.slice(1)
  return {
    scope: 'orders:read orders:write',
    audience: searchParams.get('audience'),
    accessTokenFormat: searchParams.get('format') ?? 'jwt',
    accessTokenTTL: Number(searchParams.get('ttl')),
    jwt: { sign: { alg, kid: sign[alg] } },
  }
}

// The grant of RFC 8693 as the provider's own mechanism for grants has it.
function exchange({ publish, sign }) {
  return async (ctx) => {
    const { client, params, provider } = ctx.oidc
    if (params.subject_token_type !== ACCESS_TOKEN) throw new errors.InvalidRequest('unknown subject_token_type')
    const found = await provider.ClientCredentials.find(params.subject_token)
    const keys = createLocalJWKSet({ keys: await Promise.all(publish.map(publicKey)) })
    const subject = found?.clientId ?? await jwtVerify(params.subject_token, keys, { issuer }).then(({ payload }) => payload.sub, () => undefined)
    if (!subject) throw new errors.InvalidGrant('the subject token is not good')
    const target = resourceServer(params.resource, sign)
    if (target.audience === 'nobody') throw new errors.InvalidTarget()
    const token = new provider.ClientCredentials({ client, scope: params.scope })
    token.resourceServer = new provider.ResourceServer(params.resource, target)
    ctx.exchanged = { exchanged_for: subject }
    const access_token = await token.save()
    ctx.body = { access_token, issued_token_type: ACCESS_TOKEN, token_type: 'Bearer', expires_in: token.expiration, scope: token.scope }
  }
}

async function provider({ publish, sign, gateway }) {
  const made = new Provider(issuer, {
    jwks: { keys: await Promise.all(publish.map(key)) },
    clients: [{
      client_id: 'shop',
      client_secret: 'shop-secret',
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    },
    gatewayClient('gateway-basic', 'client_secret_basic', { client_secret: 'a secret: with 100% &+ signs' }),
    gatewayClient('gateway-post', 'client_secret_post', { client_secret: 'gateway-secret' }),
    ...(gateway ? [gatewayClient('gateway-key', 'private_key_jwt', { jwks: gateway })] : []),
    ],
    clientDefaults: { id_token_signed_response_alg: publish[0].split('-')[0] },
    scopes: ['orders:read', 'orders:write'],
    extraTokenClaims: (ctx) => ctx.exchanged,
    ttl: { ClientCredentials: (_, token) => token.resourceServer.accessTokenTTL },
    features: {
      clientCredentials: { enabled: true },
      dPoP: { enabled: true },
      introspection: { enabled: true },
      revocation: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_, resource) => resourceServer(resource, sign),
      },
    },
  })
  const parameters = ['subject_token', 'subject_token_type', 'requested_token_type', 'audience', 'resource', 'scope']
  made.registerGrantType(EXCHANGE, exchange({ publish, sign }), parameters)
  return made
}

let current
const server = createServer((request, response) => current.callback()(request, response))
for await (const line of createInterface({ input: process.stdin })) {
  current = await provider(JSON.parse(line))
  if (!server.listening) await new Promise((done) => server.listen(port, '127.0.0.1', done))
  console.log('done')
}
process.exit()
