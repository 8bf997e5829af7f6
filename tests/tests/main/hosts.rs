//! A cluster of several hosts with certificates: addresses of 127.0.0.0/8 stand for them.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tramontane_proto::net::{Identity, TlsFiles};
use tramontane_tests::client::Client;
use tramontane_tests::cluster::Cluster;
use tramontane_tests::config::Plan;
use tramontane_tests::fixtures::repository;
use tramontane_tests::process::{run, tramontane};
use tramontane_tests::status::Status;

const WITHIN: Duration = Duration::from_secs(60);

async fn make_certificates(dir: &Path, names: &[String]) {
    let mut command = Command::new(repository().join("deploy/make-certificates.sh"));
    command.arg(dir).args(names);
    let ran = run(command, WITHIN).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
}

/// Asks over TLS without a certificate: what comes back, or why nothing does.
async fn ask_without_certificate(address: &str, ca: &Path) -> Result<String, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).expect("the authority"))
        .expect("the authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let host = stream.peer_addr()?.ip();
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(ServerName::from(host), stream)
        .await?;
    let request = "GET /cluster/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// Runs a command with the certificate of `name` that lies in `dir`.
async fn command(
    arguments: &[&str],
    url: &str,
    ca: &Path,
    dir: &Path,
    name: &str,
) -> tramontane_tests::process::Ran {
    let file = |ending: &str| dir.join(format!("{name}.{ending}")).display().to_string();
    let ca = ca.display().to_string();
    let (certificate, key) = (file("pem"), file("key"));
    let who = [
        "--url",
        url,
        "--ca",
        &ca,
        "--certificate",
        &certificate,
        "--key",
        &key,
    ];
    tramontane(arguments.iter().chain(&who), WITHIN).await
}

async fn status(url: &str, ca: &Path, operator: &Path) -> tramontane_tests::process::Ran {
    command(&["status", "--json"], url, ca, operator, "operator").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_with_certificates_serve_those_who_have_one_and_nobody_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let ours = dir.path().join("ours");
    let mut plan = Plan::new(2).shape(2, 1);
    plan.certificates = Some(ours.clone());
    let names = [
        format!("coordinator-1={}", plan.coordinator_host(1)),
        format!("worker-1={}", plan.worker_host(1)),
        format!("worker-2={}", plan.worker_host(2)),
        "operator".to_owned(),
    ];
    make_certificates(&ours, &names).await;
    let mut cluster = Cluster::start(plan).await;
    cluster.check_answers().await;

    let address = cluster.client(1).address.clone();
    let url = format!("https://{address}");
    let ca = ours.join("ca.pem");
    let ran = status(&url, &ca, &ours).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let seen: Status = serde_json::from_str(&ran.stdout).expect("a status");
    let mut hosts: Vec<&str> = seen
        .nodes
        .iter()
        .filter_map(|node| node.address.split(':').next())
        .collect();
    hosts.sort_unstable();
    assert_eq!(hosts, ["127.0.1.1", "127.0.2.1", "127.0.2.2"]);
    seen.serving().expect("it serves");

    // Operators change the cluster, nodes do not.
    let undo = ["drain", "worker-2", "--undo"];
    let ran = command(&undo, &url, &ca, &ours, "operator").await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = command(&undo, &url, &ca, &ours, "worker-1").await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("only coordinators and"), "{ran:?}");

    let refused = ask_without_certificate(&address, &ca).await;
    assert!(refused.is_err(), "served without a certificate: {refused:?}");
    let refused = Client::new(&address, Identity::Loopback)
        .get("/cluster/status")
        .await;
    assert!(refused.is_err(), "served without TLS: {refused:?}");
    let ran = tramontane(["status", "--url", &url], WITHIN).await;
    assert!(
        ran.code == Some(1) && ran.stderr.contains("--certificate"),
        "{ran:?}"
    );

    // A certificate of another authority is as good as none.
    let theirs = dir.path().join("theirs");
    make_certificates(&theirs, &["operator".to_owned()]).await;
    let stranger = TlsFiles {
        ca: ca.clone(),
        certificate: theirs.join("operator.pem"),
        key: theirs.join("operator.key"),
    };
    let stranger = Identity::from_config(Some(&stranger)).expect("a certificate and its key");
    let refused = Client::new(&address, stranger).get("/cluster/status").await;
    assert!(refused.is_err(), "served a stranger: {refused:?}");
    let ran = status(&url, &ca, &theirs).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    cluster.check_alive();
    cluster.check_answers().await;
}
