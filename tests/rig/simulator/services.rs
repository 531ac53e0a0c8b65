//! Services: a connection to a ClusterIP goes to a ready pod by chance, as kube-proxy would have it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;

use crate::pods::Quick;
use kube::{Api, Client, ResourceExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

type Name = (String, String);

#[derive(Default)]
struct Slices {
    slices: BTreeMap<Name, EndpointSlice>,
}

impl Slices {
    /// A ready address of a Service's port.
    fn pick(&self, service: &Name, port: &str) -> Option<(String, u16)> {
        let mut ready = Vec::new();
        for ((namespace, _), slice) in &self.slices {
            let of = slice.labels().get("kubernetes.io/service-name");
            if *namespace != service.0 || of != Some(&service.1) {
                continue;
            }
            let number = slice
                .ports
                .iter()
                .flatten()
                .find(|own| own.name.as_deref().unwrap_or("") == port);
            let Some(number) = number.and_then(|own| u16::try_from(own.port?).ok()) else {
                continue;
            };
            for endpoint in &slice.endpoints {
                let is_ready = endpoint
                    .conditions
                    .as_ref()
                    .and_then(|one| one.ready)
                    .unwrap_or(true);
                if is_ready {
                    ready.extend(
                        endpoint
                            .addresses
                            .iter()
                            .map(|address| (address.clone(), number)),
                    );
                }
            }
        }
        fastrand::choice(ready)
    }
}

pub(crate) async fn run(client: Client) {
    let slices = Arc::new(Mutex::new(Slices::default()));
    tokio::join!(
        follow_slices(client.clone(), Arc::clone(&slices)),
        follow_services(client, slices)
    );
}

async fn follow_slices(client: Client, slices: Arc<Mutex<Slices>>) {
    let mut events = watcher(
        Api::<EndpointSlice>::all(client),
        watcher::Config::default(),
    )
    .backoff(Quick)
    .boxed();
    while let Some(event) = events.next().await {
        let name =
            |slice: &EndpointSlice| (slice.namespace().unwrap_or_default(), slice.name_any());
        let mut known = slices.lock().unwrap();
        match event {
            Ok(Event::Apply(slice) | Event::InitApply(slice)) => {
                known.slices.insert(name(&slice), slice);
            }
            Ok(Event::Delete(slice)) => {
                known.slices.remove(&name(&slice));
            }
            // What went away while nobody could be heard is in no list.
            Ok(Event::Init) => known.slices.clear(),
            Ok(Event::InitDone) | Err(_) => {}
        }
    }
}

async fn follow_services(client: Client, slices: Arc<Mutex<Slices>>) {
    let mut listeners: HashMap<Name, Vec<JoinHandle<()>>> = HashMap::new();
    let mut known: HashMap<Name, Option<String>> = HashMap::new();
    let mut events = watcher(Api::<Service>::all(client), watcher::Config::default())
        .backoff(Quick)
        .boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(service) | Event::InitApply(service)) => {
                let name = (service.namespace().unwrap_or_default(), service.name_any());
                let spec = service.spec.unwrap_or_default();
                let shape = serde_json::to_string(&(&spec.cluster_ip, &spec.ports)).ok();
                if known.get(&name) == Some(&shape) || name.1 == "kubernetes" {
                    continue;
                }
                known.insert(name.clone(), shape);
                for old in listeners.remove(&name).unwrap_or_default() {
                    old.abort();
                    let _ = old.await;
                }
                let Some(ip) = spec.cluster_ip.filter(|ip| ip != "None") else {
                    continue;
                };
                let tasks = spec.ports.unwrap_or_default().into_iter().map(|port| {
                    let number = u16::try_from(port.port).unwrap();
                    let listen = listen(
                        ip.clone(),
                        number,
                        name.clone(),
                        port.name.unwrap_or_default(),
                        Arc::clone(&slices),
                    );
                    tokio::spawn(listen)
                });
                let tasks = tasks.collect();
                listeners.insert(name, tasks);
            }
            Ok(Event::Delete(service)) => {
                let name = (service.namespace().unwrap_or_default(), service.name_any());
                known.remove(&name);
                for old in listeners.remove(&name).unwrap_or_default() {
                    old.abort();
                }
            }
            Ok(Event::Init | Event::InitDone) | Err(_) => {}
        }
    }
}

async fn listen(ip: String, number: u16, service: Name, port: String, slices: Arc<Mutex<Slices>>) {
    let listener = loop {
        match TcpListener::bind((ip.as_str(), number)).await {
            Ok(listener) => break listener,
            Err(error) => {
                eprintln!("{service:?} at {ip}:{number}: {error}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    };
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let target = slices.lock().unwrap().pick(&service, &port);
                connections.spawn(forward(stream, target));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn forward(mut from: TcpStream, target: Option<(String, u16)>) {
    let connected = match &target {
        Some((address, port)) => TcpStream::connect((address.as_str(), *port)).await.ok(),
        None => None,
    };
    let Some(mut to) = connected else {
        let _ = from.set_zero_linger();
        return;
    };
    if tokio::io::copy_bidirectional(&mut from, &mut to)
        .await
        .is_err()
    {
        // A reset of the pod is one for its client.
        let _ = from.set_zero_linger();
    }
}
