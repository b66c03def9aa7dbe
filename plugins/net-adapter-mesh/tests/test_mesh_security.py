"""Keys: who gets in, who does not, and that nothing leaks to those who do not."""

import stat
import time

import pytest
import zmq
from click.testing import CliRunner
from net_adapter_mesh import MeshAdapter, MeshConfig
from net_adapter_mesh.cli import mesh
from net_adapter_mesh.frames import MAGIC, VERSION, Hello, Subscribe, encode

from netcore import ConfigError


def pair():
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


@pytest.fixture
def guarded(cluster):
    """A listening node with keys, one friend's key, and an event to protect."""
    public, secret = pair()
    friend = pair()
    node = cluster.start(secret_key=secret, authorized_keys=[friend[0]])
    node.ask("append", shard=0, payloads=["secret"])
    node.public, node.friend = public, friend
    return node


def test_security_authorized_peers_replicate_encrypted(cluster, guarded):
    """A node whose key is listed gets everything, both ways."""
    _, secret = guarded.friend
    peer = {"address": guarded.address, "public_key": guarded.public}
    friend = cluster.start(listen=None, secret_key=secret, peers=[peer])
    assert friend.ask("gather", count=1)["events"][0][4] == "secret"
    friend.ask("append", shard=0, payloads=["back"])
    assert len(guarded.ask("gather", count=2)["events"]) == 2
    assert guarded.ask("stats")["encrypted"] is True
    friend.quit()
    guarded.ask("until", expression="not stats['links']")
    assert guarded.ask("stats")["refusals"] == 0
    assert not [line for line in guarded.err if "refused" in line]


@pytest.mark.parametrize("stranger", ["stranger's key", "wrong server key", "no key", "raw tcp"])
def test_security_others_get_nothing_and_are_logged_once(guarded, stranger):
    """No event, not even a greeting, reaches who has no right; the log names the address, once."""
    host, port = guarded.address.removeprefix("tcp://").split(":")
    context = zmq.Context()
    for _ in range(3):
        socket = context.socket(zmq.STREAM if stranger == "raw tcp" else zmq.DEALER)
        socket.linger = 0
        if stranger in ("stranger's key", "wrong server key"):
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
            server = guarded.public.encode() if stranger == "stranger's key" else zmq.curve_keypair()[0]
            socket.curve_serverkey = server
        socket.connect(f"tcp://{host}:{port}")
        if stranger == "raw tcp":
            identity, _ = socket.recv_multipart()
            socket.send_multipart([identity, b"GET / HTTP/1.0\r\n\r\n" + b"x" * 100])
        else:
            hello = Hello(MAGIC, VERSION, "net", "spy", time.time_ns())
            for message in (hello, Subscribe(guarded.origin, 0)):
                socket.send(encode(message))
        deadline = time.monotonic() + 0.4
        while (left := deadline - time.monotonic()) > 0:
            if socket.poll(int(left * 1000) + 1):
                assert all(b"secret" not in part for part in socket.recv_multipart())
        socket.close()
    context.term()
    guarded.ask("until", expression="stats['refusals'] >= 1")
    stats = guarded.ask("stats")
    assert stats["links"] == []
    # A connection that libzmq has closed before its event is looked at has no address any more.
    allowed = {"127.0.0.1", *([] if stranger == "stranger's key" else ["an unknown address"])}
    assert set(stats["rejected_peers"]) <= allowed
    lines = guarded.logged("refused a link from")
    assert len(lines) == len(stats["rejected_peers"]) >= 1, guarded.err


def test_security_member_with_keys_does_not_talk_to_a_plain_node(cluster):
    """A node with keys that dials a node without finds no link."""
    plain = cluster.start()
    plain.ask("append", shard=0, payloads=["x"])
    _, secret = pair()
    keyed = cluster.start(
        listen=None, secret_key=secret, peers=[{"address": plain.address, "public_key": pair()[0]}]
    )
    keyed.ask("append", shard=0, payloads=["mine"])
    keyed.ask("until", expression="stats['bytes_in'] == 0")
    assert plain.ask("stats")["links"] == []
    assert [event[4] for event in plain.ask("page")["events"]] == ["x"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"listen": "tcp://0.0.0.0:7777"}, "reachable from other machines"),
        ({"listen": "tcp://10.0.0.1:7777"}, "insecure=True"),
        ({"listen": "tcp://127.0.0.1:1", "secret_key": pair()[1]}, "need authorized_keys"),
        ({"authorized_keys": [pair()[0]]}, "needs a secret_key"),
        ({"secret_key": pair()[1], "peers": ["tcp://127.0.0.1:1"]}, "needs its public_key"),
        ({"peers": [{"address": "tcp://127.0.0.1:1", "public_key": pair()[0]}]}, "no secret_key"),
        ({"secret_key": "x", "secret_key_file": "y"}, "not both"),
        ({"listen": "udp://127.0.0.1:1"}, "must be tcp://host:port"),
        ({"peers": [{"adress": "tcp://127.0.0.1:1"}]}, "peers"),
        ({"heartbeat_ms": 1}, "heartbeat_ms must be"),
        ({"fsync": "sometimes"}, "fsync must be"),
        ({"node_id": "no spaces"}, "node_id must be"),
        ({"max_age_s": 0}, "max_age_s must be"),
    ],
)
def test_config_that_contradicts_itself_is_refused(settings, match):
    """Unsafe or impossible settings raise, naming what to do."""
    with pytest.raises(ConfigError, match=match):
        MeshConfig(**settings)


def test_config_allows_insecure_when_told_so():
    """`insecure=True` lets a node listen beyond loopback without keys."""
    assert MeshConfig(listen="tcp://0.0.0.0:7777", insecure=True).listen == "tcp://0.0.0.0:7777"


@pytest.mark.parametrize("key", ["short", "x" * 41, "ü" * 40, "~" * 40])
def test_config_malformed_keys_are_refused_without_showing_secrets(key):
    """A key that is none is a ConfigError; a secret one is not repeated."""
    with pytest.raises(ConfigError, match="40 characters") as caught:
        MeshAdapter(MeshConfig(secret_key=key))
    assert key not in str(caught.value)
    with pytest.raises(ConfigError, match="authorized_keys"):
        MeshAdapter(MeshConfig(secret_key=pair()[1], authorized_keys=[key]))


def test_config_repr_hides_the_secret_key():
    """Showing a configuration shows no secret."""
    _, secret = pair()
    assert secret not in repr(MeshConfig(secret_key=secret))


def test_keygen_writes_a_pair_readable_by_its_owner_only(tmp_path):
    """`netcore mesh keygen` makes a usable pair, mode 0600, and overwrites nothing."""
    path = tmp_path / "node.key"
    result = CliRunner().invoke(mesh, ["keygen", str(path)])
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = (tmp_path / "node.key.pub").read_text().strip()
    assert public in result.output
    assert path.read_text().strip() not in result.output
    adapter = MeshAdapter(MeshConfig(secret_key_file=str(path), authorized_keys=f"{path}.pub"))
    assert adapter._keys.public.decode() == public
    assert adapter._keys.authorized == {public.encode()}
    again = CliRunner().invoke(mesh, ["keygen", str(path)])
    assert again.exit_code == 1
    assert "File exists" in again.output


def test_status_lists_members_and_what_they_hold(cluster):
    """`netcore mesh status` asks a running node, and changes nothing there."""
    a, b = cluster.mesh(2)
    a.ask("load", count=100)
    b.ask("gather", count=100)
    result = CliRunner().invoke(mesh, ["status", a.address])
    assert result.exit_code == 0, result.output
    assert f"{a.origin}  {a.address}" in result.output
    assert b.origin in result.output
    refused = CliRunner().invoke(mesh, ["status", a.address, "--name", "other"])
    assert refused.exit_code == 1
    assert "belongs to the mesh 'other'" in refused.output


def test_status_of_a_guarded_node_needs_an_authorized_key(guarded, tmp_path):
    """With keys it answers those it knows, and nobody else."""
    key = tmp_path / "friend"
    key.write_text(guarded.friend[1])
    arguments = ["status", guarded.address, "--secret-key-file", str(key), "--public-key", guarded.public]
    result = CliRunner().invoke(mesh, arguments)
    assert guarded.origin in result.output
    silent = CliRunner().invoke(mesh, ["status", guarded.address, "--timeout", "0.3"])
    assert silent.exit_code == 1
    assert "did not answer" in silent.output
