//! Runs one test of this program again in a network and a file system of its own, with names that it chooses.

use std::process::Command;

/// What is set up before the test: addresses behind which nobody is, and the files of the resolver.
/// Packets to 192.0.2.0/24 and fd00:1::/64 go nowhere, and nothing comes back.
const SETUP: &str = "set -e
ip link set lo up
ip link add nowhere type veth peer name nobody
ip link set nowhere arp off
ip link set nobody up
ip link set nowhere up
ip addr add 192.0.2.1/24 dev nowhere
ip -6 addr add fd00:1::1/64 dev nowhere nodad
printf '%s' \"$HOSTS\" > \"$FILES/hosts\"
echo 'nameserver 127.0.0.1' > \"$FILES/resolv.conf\"
echo 'hosts: files dns' > \"$FILES/nsswitch.conf\"
for name in hosts resolv.conf nsswitch.conf; do
  [ -e /etc/$name ] || touch /etc/$name
  mount --bind \"$FILES/$name\" \"$(readlink -f /etc/$name)\"
done
exec \"$TEST\" --exact \"$NAME\" --ignored --nocapture
";

/// Runs the ignored test of this name there, with this `/etc/hosts`.
pub fn run(name: &str, hosts: &str) {
    let files = tempfile::TempDir::new().unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", SETUP])
        .env("HOSTS", hosts)
        .env("FILES", files.path())
        .env("TEST", std::env::current_exe().unwrap())
        .env("NAME", name)
        .output()
        .expect("unshare of Debian is there");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
