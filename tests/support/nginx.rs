//! A real nginx, the one of Debian, with a configuration of the test's own.

use std::io::Read as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// An nginx with three entrances that serve the same files; it ends when this is dropped.
pub struct Nginx {
    child: Child,
    directory: TempDir,
    /// HTTP/1.1 without TLS, HTTP/2 without TLS, both with TLS.
    pub ports: [u16; 3],
}

impl Nginx {
    /// `http` stands in the block of that name, `server` in that of each entrance; the files are `/` (a few bytes) and
    /// `/large` (300 kB). `certificate`: of the entrance with TLS, and its key.
    pub fn start(http: &str, server: &str, certificate: &(PathBuf, PathBuf)) -> Self {
        let directory = TempDir::new().unwrap();
        let root = directory.path().display();
        std::fs::write(directory.path().join("index.html"), "ok\n").unwrap();
        std::fs::write(directory.path().join("large"), vec![b'x'; 300_000]).unwrap();
        let ports = free_ports();
        let [plain, clear, tls] = ports;
        let (certificate, key) = (certificate.0.display(), certificate.1.display());
        let configuration = format!(
            "worker_processes 2;\nerror_log {root}/error.log info;\npid {root}/nginx.pid;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n  access_log off;\n  root {root};\n  client_body_temp_path {root}/body;\n  \
             proxy_temp_path {root}/proxy;\n  fastcgi_temp_path {root}/fastcgi;\n  \
             uwsgi_temp_path {root}/uwsgi;\n  scgi_temp_path {root}/scgi;\n  {http}\n  \
             server {{ {server} listen 127.0.0.1:{plain}; }}\n  \
             server {{ {server} listen 127.0.0.1:{clear} http2; }}\n  \
             server {{ {server} listen 127.0.0.1:{tls} ssl http2; ssl_certificate {certificate}; \
             ssl_certificate_key {key}; }}\n}}\n"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, configuration).unwrap();
        // Its workers must be able to read what the test wrote.
        let child = Command::new("nginx")
            .args(["-g", "daemon off; user root;", "-e", "stderr", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nginx of Debian is installed");
        let mut nginx = Self {
            child,
            directory,
            ports,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", tls)).is_err() {
            if nginx.child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let mut text = String::new();
                let _ = nginx.child.stderr.take().unwrap().read_to_string(&mut text);
                panic!("nginx does not start: {text}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        nginx
    }

    /// The URL of a path: over plain HTTP/1.1, clear HTTP/2, or TLS.
    pub fn url(&self, entrance: usize, path: &str) -> String {
        let scheme = if entrance == 2 { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}{path}", self.ports[entrance])
    }

    /// Reads its configuration again: new processes serve from now on, the old ones say goodbye.
    pub fn reload(&self) {
        let pid = std::fs::read_to_string(self.directory.path().join("nginx.pid")).unwrap();
        let done = Command::new("kill").args(["-HUP", pid.trim()]).status();
        assert!(done.unwrap().success());
    }

    /// How often new processes have taken over.
    pub fn generations(&self) -> usize {
        let log = std::fs::read_to_string(self.directory.path().join("error.log")).unwrap();
        log.matches("start worker processes").count()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.child.wait();
    }
}

fn free_ports() -> [u16; 3] {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
