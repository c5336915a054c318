"""The gateways: each with one worker on one core, and each with the same checks as far as it has them.

A peer that cannot do what a chain asks for says so by `Unable`; it is left out of that workload, and the reason is printed.
"""

import json
import re
import signal
import subprocess
import urllib.request
from dataclasses import dataclass, replace

import machine
from machine import check, free_port, listens, within
from material import AUDIENCE, ISSUER

# The networks that may enter; the one that all callers are of stands last.
NETWORKS = [f"10.{number}.0.0/16" for number in range(9)] + ["127.0.0.0/8"]

# Beyond what anybody reaches: that the limit is counted is measured, not that it refuses.
PLENTY = 1_000_000_000


# The name in the origin's certificate.
ORIGIN = "localhost"

# So few keys that they lie in the processor's nearest cache.
TEN = 10


class Unable(Exception):
    """This peer has no such thing, or none that is comparable."""


@dataclass(frozen=True)
class Chain:
    """What a gateway does with each request of a workload."""

    # Ten allowed networks, and a limit for each address that nobody reaches.
    guarded: bool = False
    # The limit is one request a day instead: from the second on all are refused.
    exhausted: bool = False
    # api_key, jwt, introspection, external, certificate
    credential: str | None = None
    keys: int = TEN
    algorithm: str = "RS256"
    cached: bool = True
    # server, mutual
    tls: str | None = None
    # HTTP/2 to the origin, with prior knowledge.
    http2: bool = False
    # TLS to the origin, whose name is verified.
    secured: bool = False
    routes: int = 1
    # What everybody is refused with, for the peer that decides nothing.
    refuses: int | None = None
    reloads: bool = False

    @property
    def paths(self):
        return [f"/r{number}/" for number in range(self.routes)] if self.routes > 1 else ["/"]


@dataclass
class Ports:
    """Where the origin is."""

    plain: int
    http2: int
    tls: int


class Peer:
    """A gateway that runs. Subclasses write its configuration and say how it is started."""

    name = ""
    # What it is started with, where that is not called as it is.
    program = None
    # Whether it does the checks of a chain; one that does not says what the same requests cost without them.
    decides = True

    @staticmethod
    def takes_part(workload):
        """Whether it has something to say there: what is there beside its like only is not asked elsewhere."""
        return True

    def __init__(self, stage, chain, origin, material, core, tools):
        self.stage, self.chain, self.origin, self.material, self.core, self.tools = stage, chain, origin, material, core, tools
        self.port = free_port()
        self.log = f"{self.name}.log"
        # Whatever it lacks is said here, before anything runs.
        self.prepare(0)

    def sends(self, load):
        """What it is sent, where that is not what all are."""
        return load

    @property
    def upstream(self):
        if self.chain.secured:
            return self.origin.tls
        return self.origin.http2 if self.chain.http2 else self.origin.plain

    @property
    def networks(self):
        return NETWORKS if self.chain.guarded else None

    def start(self):
        self.process = self.stage.spawn(*self.command(), core=self.core, log=self.log, stdout=self.output())
        within(machine.START, f"{self.name} serves", self._serves)
        self.idle = machine.memory(self.process.pid)

    def stop(self):
        self.stage.stop(self.process)

    def prepare(self, generation):
        """Writes the configuration; each generation of it allows one network more."""

    def command(self):
        raise NotImplementedError

    def output(self):
        """Where standard output goes; by default to the log."""
        return None

    def reload(self, generation):
        """Has the next generation of the configuration take over, as an operator would."""

    def serving(self):
        """What is another after a reload: here the processes, since a new one takes over."""
        return machine.tree(self.process.pid)

    def _serves(self):
        check(self.process.poll() is None, f"{self.name} ended at its start:\n{self.stage.said(self.log)}")
        return listens(self.port)

    def _reads_path(self, name):
        return str(self.material.path(name))

    def _networks(self, generation):
        return [*(self.networks or []), f"192.0.2.{generation % 256}/32"]


class Edgeward(Peer):
    """As in production: metrics on, the access log sampled (refusals are always written), usage of keys counted."""

    name = "edgeward"

    def prepare(self, generation):
        chain = self.chain
        listener = {"address": f"127.0.0.1:{self.port}"}
        if chain.tls:
            tls = {"certificates": [{"chain": self._reads_path("server.pem"), "key": {"file": self._reads_path("server.key")}}]}
            if chain.tls == "mutual":
                tls["client_certificates"] = {"mode": "required", "ca": self._reads_path("ca.pem")}
            listener["tls"] = tls
        policy = {"authenticate": "callers" if chain.credential else "public"}
        limits = {}
        if chain.guarded or chain.exhausted:
            limits = {"each": {"per": "client_ip", "rate": "1/d" if chain.exhausted else f"{PLENTY}/s"}}
            policy["limits"] = ["each"]
        if chain.guarded or chain.reloads:
            policy["allow"] = self._networks(generation)
        upstream = {"servers": [f"127.0.0.1:{self.upstream}"]} | ({"http2": True} if chain.http2 else {})
        if chain.secured:
            upstream["tls"] = {"server_name": ORIGIN, "ca": self._reads_path("ca.pem")}
        routes = [
            {"name": f"r{number}", "path": f"{path}{{*rest}}", "policy": "all", "upstream": "origin"}
            for number, path in enumerate(chain.paths)
        ]
        if not hasattr(self, "admin"):
            self.admin = free_port()
        config = {
            "server": {"threads": 1},
            "listeners": [listener],
            "admin": {"address": f"127.0.0.1:{self.admin}"},
            "telemetry": {"access_log": {"sample": 0.01}},
            "upstreams": {"origin": upstream},
            "limits": limits,
            "authenticators": self._authenticators(),
            "policies": {"all": policy},
            "routes": routes,
        }
        self.file = self.stage.write(f"{self.name}.yaml", json.dumps(config))

    def _authenticators(self):
        chain, origin = self.chain, f"http://127.0.0.1:{self.origin.plain}"
        match chain.credential:
            case None:
                return {}
            case "api_key":
                how = {"api_key": {"keys": {"database": str(self.material.key_database(chain.keys))}}}
            case "jwt":
                keys = {"jwks_file": str(self.material.jwks)}
                how = {"jwt": {"issuer": ISSUER, "audiences": [AUDIENCE], "keys": keys}}
            case "introspection":
                secret = self.stage.write("introspection.secret", "a secret that nobody checks here")
                cache = {"ttl": "45s" if chain.cached else "0s", "negative_ttl": "0s"}
                client = {"id": "edgeward", "secret": {"file": str(secret)}}
                how = {"introspection": {"url": f"{origin}/introspect", "client": client, "cache": cache}}
            case "external":
                external = {"url": f"{origin}/check", "response": "forward_auth", "claims": {"subject": "Remote-User"}}
                cache = {"cache": {"by": ["credential", "route"]}} if chain.cached else {}
                how = {"external": external | cache}
            case "certificate":
                how = {"client_certificate": {"identity": "common_name", "allow": ["*"]}}
        return {"callers": how}

    def command(self):
        return [self.tools.edgeward, "run", "-c", self.file]

    def output(self):
        return subprocess.DEVNULL

    def reload(self, generation):
        self.prepare(generation)
        self.process.send_signal(signal.SIGHUP)

    def serving(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as answer:
            found = re.search(r"^edgeward_config_reloads_applied_total (\d+)", answer.read().decode(), re.M)
        check(found, "edgeward counts no reloads")
        return int(found[1])


class EdgewardPgo(Edgeward):
    """The same, built by `make pgo`."""

    name = "edgeward_pgo"

    def command(self):
        return [self.tools.edgeward_pgo, "run", "-c", self.file]


class EdgewardTen(Edgeward):
    """The same with ten keys, beside the one with many: what their number costs."""

    name = "edgeward_ten"
    program = "edgeward"

    @staticmethod
    def takes_part(workload):
        return workload.chain.credential == "api_key" and workload.chain.keys > TEN

    def __init__(self, stage, chain, *others):
        super().__init__(stage, replace(chain, keys=TEN), *others)

    def sends(self, load):
        return replace(load, lines=self.material.some_keys(TEN))


class Bare(Peer):
    """The framework without filters: the floor. It decides nothing, so it serves every chain alike, and refuses by a number."""

    name = "bare"
    decides = False

    def command(self):
        chain = self.chain
        command = [self.tools.bare, "--listen", f"127.0.0.1:{self.port}", "--origin", f"127.0.0.1:{self.upstream}"]
        if chain.http2:
            command += ["--http2"]
        if chain.secured:
            command += ["--origin-name", ORIGIN, "--origin-ca", self._reads_path("ca.pem")]
        if chain.tls:
            command += ["--chain", self._reads_path("server.pem"), "--key", self._reads_path("server.key")]
        if chain.tls == "mutual":
            command += ["--client-ca", self._reads_path("ca.pem")]
        if chain.refuses:
            command += ["--refuse", chain.refuses]
        return command


class Origin(Peer):
    """The origin with no gateway before it: what latency there is without any. What it costs is nobody's."""

    name = "origin"
    decides = False

    @staticmethod
    def takes_part(workload):
        return workload.pace is not None

    def prepare(self, generation):
        if self.chain.tls:
            raise Unable("it speaks HTTP/2 without TLS only")
        self.port = self.upstream

    def command(self):
        return ["sleep", "infinity"]


class Haproxy(Peer):
    name = "haproxy"

    def prepare(self, generation):
        chain = self.chain
        if chain.credential == "introspection":
            raise Unable("no introspection without a script")
        if chain.credential == "external":
            raise Unable("no external authorizer without a script")
        tls = f" ssl crt {self._reads_path('server.both.pem')} alpn h2,http/1.1" if chain.tls else ""
        if chain.tls == "mutual":
            tls += f" ca-file {self._reads_path('ca.pem')} verify required"
        rules = []
        if chain.guarded or chain.reloads:
            networks = self.stage.write(f"{self.name}.networks", "\n".join(self._networks(generation)) + "\n")
            rules += [f"http-request deny deny_status 403 unless {{ src -f {networks} }}"]
        if chain.guarded or chain.exhausted:
            period, most = ("1d", 1) if chain.exhausted else ("1s", PLENTY)
            rules += [
                f"stick-table type ip size 1m expire {period} store http_req_rate({period})",
                "http-request track-sc0 src",
                f"http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {most} }}",
            ]
        rules += self._credential()
        if chain.routes > 1:
            routes = self.stage.write(f"{self.name}.routes", "".join(f"{path} origin\n" for path in chain.paths))
            rules += [
                f"http-request set-var(txn.backend) path,map_beg({routes})",
                "http-request deny deny_status 404 unless { var(txn.backend) -m found }",
                "use_backend %[var(txn.backend)]",
            ]
        else:
            rules += ["default_backend origin"]
        origin = " proto h2" if chain.http2 else ""
        if chain.secured:
            origin = f" ssl verify required ca-file {self._reads_path('ca.pem')} sni str({ORIGIN}) verifyhost {ORIGIN}"
        text = f"""
global
    nbthread 1
    maxconn 8000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s
frontend callers
    bind 127.0.0.1:{self.port}{tls}
    {chr(10).join("    " + rule for rule in rules).strip()}
backend origin
    http-reuse always
    server origin 127.0.0.1:{self.upstream}{origin}
"""
        self.file = self.stage.write(f"{self.name}.cfg", text)

    def _credential(self):
        match self.chain.credential:
            case "api_key":
                keys = self.material.key_map(self.chain.keys, "{key} {consumer}", "haproxy")
                return [
                    f"http-request set-var(txn.consumer) req.hdr(x-api-key),map_str({keys})",
                    "http-request deny deny_status 401 unless { var(txn.consumer) -m found }",
                    "http-request set-header X-Consumer-Id %[var(txn.consumer)]",
                    "http-request del-header X-API-Key",
                ]
            case "jwt":
                public = self.material.public_key(self.chain.algorithm)
                # What is cheap first: an expired token costs no verification.
                return [
                    "http-request set-var(txn.token) http_auth_bearer",
                    "http-request deny deny_status 401 unless { var(txn.token) -m found }",
                    "http-request set-var(txn.alg) var(txn.token),jwt_header_query('$.alg')",
                    f"http-request deny deny_status 401 unless {{ var(txn.alg) -m str {self.chain.algorithm} }}",
                    f"http-request deny deny_status 401 unless {{ var(txn.token),jwt_payload_query('$.iss') -m str {ISSUER} }}",
                    f"http-request deny deny_status 401 unless {{ var(txn.token),jwt_payload_query('$.aud') -m str {AUDIENCE} }}",
                    "http-request set-var(txn.exp) var(txn.token),jwt_payload_query('$.exp','int')",
                    "http-request set-var(txn.now) date()",
                    "http-request deny deny_status 401 unless { var(txn.exp),sub(txn.now) -m int gt 0 }",
                    f'http-request deny deny_status 401 unless {{ var(txn.token),jwt_verify(txn.alg,"{public}") -m int 1 }}',
                    "http-request set-header X-User-Id %[var(txn.token),jwt_payload_query('$.sub')]",
                    "http-request set-header X-Consumer-Id %[var(txn.token),jwt_payload_query('$.client_id')]",
                    "http-request del-header Authorization",
                ]
            case "certificate":
                return ["http-request set-header X-User-Id %[ssl_c_s_dn(cn)]"]
        return []

    def command(self):
        return ["haproxy", "-W" if self.chain.reloads else "-db", "-f", self.file]

    def reload(self, generation):
        self.prepare(generation)
        self.process.send_signal(signal.SIGUSR2)


class HaproxyPlain(Haproxy):
    """The same without a check, beside those who do the whole chain."""

    name = "haproxy_plain"
    program = "haproxy"
    decides = False

    @staticmethod
    def takes_part(workload):
        chain = workload.chain
        return chain.guarded and chain.credential is not None and not chain.refuses and not chain.reloads

    def __init__(self, stage, chain, *others):
        super().__init__(stage, Chain(tls=chain.tls, http2=chain.http2, secured=chain.secured), *others)


class Nginx(Peer):
    name = "nginx"

    def prepare(self, generation):
        chain, folder = self.chain, self.stage.folder
        if chain.credential == "jwt":
            raise Unable("no JWT in the open-source edition without a script")
        if chain.credential == "introspection":
            raise Unable("no introspection in the open-source edition without a script")
        http, server = [], []
        if chain.guarded or chain.reloads:
            server += [f"allow {network};" for network in self._networks(generation)] + ["deny all;"]
        if chain.guarded or chain.exhausted:
            http += [
                f"limit_req_zone $binary_remote_addr zone=each:10m rate={'1r/m' if chain.exhausted else '1000000r/s'};",
                "limit_req_status 429;",
            ]
            server += ["limit_req zone=each;" if chain.exhausted else "limit_req zone=each burst=1000000 nodelay;"]
        tls = ""
        if chain.tls:
            tls = " ssl http2"
            server += [
                f"ssl_certificate {self._reads_path('server.pem')};",
                f"ssl_certificate_key {self._reads_path('server.key')};",
            ]
            server += ["ssl_protocols TLSv1.2 TLSv1.3;"]
        if chain.tls == "mutual":
            server += [f"ssl_client_certificate {self._reads_path('ca.pem')};", "ssl_verify_client on;"]
        # A mebibyte goes through memory, not through a file.
        server += [
            "proxy_buffer_size 16k;",
            "proxy_buffers 16 64k;",
            "proxy_busy_buffers_size 256k;",
            "proxy_max_temp_file_size 0;",
        ]
        forward = ["proxy_http_version 1.1;", 'proxy_set_header Connection "";', "proxy_set_header Host $host;"]
        locations = []
        match chain.credential:
            case "api_key":
                keys = self.material.key_map(chain.keys, '"{key}" {consumer};', "nginx")
                http += [f"map_hash_max_size {max(2048, chain.keys * 2)};", "map_hash_bucket_size 128;"]
                http += [f'map $http_x_api_key $consumer {{ default ""; include {keys}; }}']
                server += ['if ($consumer = "") { return 401; }']
                forward += ["proxy_set_header X-Consumer-Id $consumer;", 'proxy_set_header X-API-Key "";']
            case "external":
                cache = []
                if chain.cached:
                    http += [f"proxy_cache_path {folder}/nginx-cache levels=1 keys_zone=decisions:10m inactive=10m;"]
                    cache = ["proxy_cache decisions;", "proxy_cache_key $http_authorization;", "proxy_cache_valid 200 60s;"]
                asked = [
                    "internal;",
                    "proxy_pass http://origin;",
                    "proxy_pass_request_body off;",
                    'proxy_set_header Content-Length "";',
                    *cache,
                ]
                locations += [f"location = /check {{ {' '.join(asked)} }}"]
                forward += ["proxy_set_header Remote-User $user;", 'proxy_set_header Authorization "";']
            case "certificate":
                http += ["map $ssl_client_s_dn $common_name { ~CN=(?<name>[^,]+) $name; }"]
                forward += ["proxy_set_header X-User-Id $common_name;"]
        # HTTP/2 to an origin is for gRPC alone there, which is what is sent.
        inside = ["grpc_pass grpc://origin;" if chain.http2 else f"proxy_pass http{'s' if chain.secured else ''}://origin;"]
        if chain.secured:
            forward += ["proxy_ssl_verify on;", f"proxy_ssl_trusted_certificate {self._reads_path('ca.pem')};"]
            forward += ["proxy_ssl_server_name on;", f"proxy_ssl_name {ORIGIN};"]
        if chain.credential == "external":
            # The subrequest carries what the caller sent; only the main request is stripped.
            inside += ["auth_request /check;", "auth_request_set $user $upstream_http_remote_user;", *forward]
            server += forward[:3]
        else:
            server += forward
        locations += [f"location {path} {{ {' '.join(inside)} }}" for path in chain.paths]
        text = f"""
daemon off;
master_process {"on" if chain.reloads else "off"};
user root;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log {folder}/nginx.error.log crit;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-1;
    proxy_temp_path {folder}/nginx-2;
    fastcgi_temp_path {folder}/nginx-3;
    uwsgi_temp_path {folder}/nginx-4;
    scgi_temp_path {folder}/nginx-5;
    client_max_body_size 64m;
    client_body_buffer_size 1100k;
    keepalive_requests 1000000000;
    upstream origin {{
        server 127.0.0.1:{self.upstream};
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    {chr(10).join("    " + line for line in http).strip()}
    server {{
        listen 127.0.0.1:{self.port}{tls} backlog=4096;
    {chr(10).join("        " + line for line in server + locations)}
    }}
}}
"""
        self.file = self.stage.write("nginx.conf", text)

    def command(self):
        return ["nginx", "-e", self.stage.folder / self.log, "-c", self.file]

    def reload(self, generation):
        self.prepare(generation)
        self.process.send_signal(signal.SIGHUP)


class Envoy(Peer):
    """With its cache of verified tokens, one worker thread, no access log."""

    name = "envoy"
    remembers = True

    def prepare(self, generation):
        chain = self.chain
        if chain.credential == "introspection":
            raise Unable("no introspection")
        if chain.credential == "external" and chain.cached:
            raise Unable("no cache of an authorizer's decisions")
        if chain.reloads:
            raise Unable("new configuration comes from a management server, not by a reload of a file")
        if chain.credential == "api_key" and chain.keys > 100_000:
            raise Unable("its keys are part of its configuration, which is not made for so many")
        if chain.routes > 1_000:
            raise Unable("its list of routes is tried from the top; its matcher trees, made for so many, are another grammar")
        hosts = {"name": "all", "domains": ["*"], "routes": self._routes()}
        filters = [*self._guards(), *self._credential(), extension("http", "router.v3.Router", {})]
        if chain.guarded or chain.exhausted:
            hosts["rate_limits"] = [{"actions": [{"remote_address": {}}]}]
        if chain.credential == "certificate":
            value = "%DOWNSTREAM_PEER_SUBJECT%"
            overwrite = "OVERWRITE_IF_EXISTS_OR_ADD"
            hosts["request_headers_to_add"] = [{"header": {"key": "x-user-id", "value": value}, "append_action": overwrite}]
        manager = {
            "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "callers",
            "codec_type": "AUTO",
            "use_remote_address": True,
            # ab speaks no other.
            "http_protocol_options": {"accept_http_10": True},
            "route_config": {"name": "routes", "virtual_hosts": [hosts]},
            "http_filters": filters,
        }
        listened = {"filters": [{"name": "http", "typed_config": manager}]}
        if chain.tls:
            listened["transport_socket"] = {"name": "tls", "typed_config": self._tls()}
        listener = {"name": "callers", "address": address(self.port), "filter_chains": [listened]}
        origin = cluster("origin", self.upstream, chain.http2)
        if chain.secured:
            origin["transport_socket"] = {"name": "tls", "typed_config": self._verified()}
        clusters = [origin, cluster("authorizer", self.origin.plain, False)]
        config = {
            "static_resources": {"listeners": [listener], "clusters": clusters},
            "admin": {"address": address(free_port())},
            # As for the others: no connection is turned away.
            "layered_runtime": {
                "layers": [{"name": "static", "static_layer": {"overload": {"global_downstream_max_connections": 20000}}}]
            },
        }
        self.file = self.stage.write(f"{self.name}.json", json.dumps(config))

    def _routes(self):
        return [{"match": {"prefix": path}, "route": {"cluster": "origin", "timeout": "0s"}} for path in self.chain.paths]

    def _guards(self):
        guards = []
        if self.chain.guarded:
            networks = [network.split("/") for network in self._networks(0)]
            principals = [{"remote_ip": {"address_prefix": prefix, "prefix_len": int(bits)}} for prefix, bits in networks]
            policies = {"allowed": {"permissions": [{"any": True}], "principals": principals}}
            guards += [extension("http", "rbac.v3.RBAC", {"rules": {"action": "ALLOW", "policies": policies}})]
        if self.chain.guarded or self.chain.exhausted:
            most = 1 if self.chain.exhausted else PLENTY
            bucket = {"max_tokens": most, "tokens_per_fill": most, "fill_interval": "86400s" if self.chain.exhausted else "1s"}
            always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
            plenty = {"max_tokens": PLENTY, "tokens_per_fill": PLENTY, "fill_interval": "1s"}
            limit = {
                "stat_prefix": "each",
                "token_bucket": plenty,
                "filter_enabled": always,
                "filter_enforced": always,
                # An entry without a value counts each address by itself.
                "descriptors": [{"entries": [{"key": "remote_address"}], "token_bucket": bucket}],
                "max_dynamic_descriptors": 100_000,
            }
            guards += [extension("http", "local_ratelimit.v3.LocalRateLimit", limit)]
        return guards

    def _credential(self):
        match self.chain.credential:
            case "api_key":
                keys = self.material.keys(self.chain.keys).read_text().split()
                credentials = [{"key": key, "client": f"consumer-{number}"} for number, key in enumerate(keys)]
                forwarding = {"header": "x-consumer-id", "hide_credentials": True}
                api_key = {"credentials": credentials, "key_sources": [{"header": "x-api-key"}], "forwarding": forwarding}
                return [extension("http", "api_key_auth.v3.ApiKeyAuth", api_key)]
            case "jwt":
                provider = {
                    "issuer": ISSUER,
                    "audiences": [AUDIENCE],
                    "local_jwks": {"filename": str(self.material.jwks)},
                    "claim_to_headers": [
                        {"header_name": "x-user-id", "claim_name": "sub"},
                        {"header_name": "x-consumer-id", "claim_name": "client_id"},
                    ],
                }
                if self.remembers:
                    provider["jwt_cache_config"] = {"jwt_cache_size": 200_000}
                rules = [{"match": {"prefix": "/"}, "requires": {"provider_name": "login"}}]
                return [extension("http", "jwt_authn.v3.JwtAuthentication", {"providers": {"login": provider}, "rules": rules})]
            case "external":
                service = {
                    "server_uri": {"uri": f"http://127.0.0.1:{self.origin.plain}", "cluster": "authorizer", "timeout": "0.5s"},
                    "path_prefix": "/check",
                    "authorization_response": {"allowed_upstream_headers": {"patterns": [{"exact": "remote-user"}]}},
                }
                # The credential is for the authorizer alone.
                strip = {"mutations": {"request_mutations": [{"remove": "authorization"}]}}
                return [
                    extension("http", "ext_authz.v3.ExtAuthz", {"http_service": service}),
                    extension("http", "header_mutation.v3.HeaderMutation", strip),
                ]
        return []

    def _tls(self):
        pair = {
            "certificate_chain": {"filename": self._reads_path("server.pem")},
            "private_key": {"filename": self._reads_path("server.key")},
        }
        common = {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"]}
        tls = {"@type": f"{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": common}
        if self.chain.tls == "mutual":
            common["validation_context"] = {"trusted_ca": {"filename": self._reads_path("ca.pem")}}
            tls |= {"require_client_certificate": True, "disable_stateless_session_resumption": True}
        return tls

    def _verified(self):
        names = [{"san_type": "DNS", "matcher": {"exact": ORIGIN}}]
        trusted = {"trusted_ca": {"filename": self._reads_path("ca.pem")}, "match_typed_subject_alt_names": names}
        tls = {"@type": f"{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext", "sni": ORIGIN}
        return tls | {"common_tls_context": {"validation_context": trusted}}

    def command(self):
        return [self.tools.envoy, "-c", self.file, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]


class EnvoyUncached(Envoy):
    """The same without its cache, as it is where none is configured: it verifies each token anew."""

    name = "envoy_uncached"
    program = "envoy"
    remembers = False

    @staticmethod
    def takes_part(workload):
        return workload.chain.credential == "jwt" and not workload.chain.refuses


TYPES = "type.googleapis.com/envoy.extensions"


def extension(kind, message, config):
    return {"name": message.split(".")[0], "typed_config": {"@type": f"{TYPES}.filters.{kind}.{message}"} | config}


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name, port, http2):
    endpoint = {"endpoint": {"address": address(port)}}
    most = {"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}
    whole = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "circuit_breakers": {"thresholds": [most]},
    }
    if http2:
        options = {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"}
        options["explicit_http_config"] = {"http2_protocol_options": {}}
        whole["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
    return whole


class Pingap(Peer):
    """Only when asked for: it is compiled, which takes long."""

    name = "pingap"

    def prepare(self, generation):
        chain, folder = self.chain, self.stage.folder
        if chain != Chain(guarded=chain.guarded):
            raise Unable("what it has tells the origin no caller, or is not compared here")
        plugins, used = "", []
        if chain.guarded:
            used = ["networks", "each"]
            plugins = f"""
[plugins.networks]
category = "ip_restriction"
type = "allow"
ip_list = {json.dumps(self._networks(generation))}
[plugins.each]
category = "limit"
type = "rate"
tag = "ip"
max = {PLENTY}
interval = "1s"
"""
        text = f"""
[basic]
threads = 1
pid_file = "{folder}/pingap.pid"
upgrade_sock = "{folder}/pingap.sock"
upstream_keepalive_pool_size = 1024
[upstreams.origin]
addrs = ["127.0.0.1:{self.upstream}"]
[locations.all]
upstream = "origin"
path = "/"
plugins = {json.dumps(used)}
[servers.callers]
addr = "127.0.0.1:{self.port}"
locations = ["all"]
threads = 1
{plugins}"""
        self.file = self.stage.write("pingap.toml", text)

    def command(self):
        return [self.tools.pingap, "-c", self.file]


ALL = [Origin, Bare, Edgeward, EdgewardTen, EdgewardPgo, HaproxyPlain, Haproxy, Nginx, Envoy, EnvoyUncached, Pingap]


def versions(tools):
    """What each of them says that it is."""
    commands = {
        "edgeward": [tools.edgeward, "--version"],
        "haproxy": ["haproxy", "-v"],
        "nginx": ["nginx", "-v"],
        "envoy": [tools.envoy, "--version"],
        "pingap": [tools.pingap, "--version"],
        "wrk": ["wrk", "-v"],
        "h2load": ["h2load", "--version"],
        "ab": ["ab", "-V"],
    }
    found = {}
    for name, command in commands.items():
        if command[0]:
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=30)
            # The path of a program may have a number of its own, of two parts.
            said = done.stdout + done.stderr
            number = re.search(r"\d+\.\d+\.\d+", said) or re.search(r"\d+\.\d+", said)
            found[name] = number[0] if number else "unknown"
    return found
