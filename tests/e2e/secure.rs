//! Tests the GitHub App over HTTPS, as with GitHub itself, with a certificate authority of the test.

use std::{path::Path, process::Command, sync::Arc};

use evenkeel::model::Verdict;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::stage::{Stage, component, environment, module};

fn openssl(folder: &Path, arguments: &str) {
    let done = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
    assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Creates the key of an App, `app.pem`, and returns its public half.
pub(crate) fn app_key(folder: &Path) -> String {
    openssl(folder, "genrsa -traditional -out app.pem 2048");
    openssl(folder, "rsa -in app.pem -pubout -out app.pub");
    std::fs::read_to_string(folder.join("app.pub")).unwrap()
}

/// Starts a TLS proxy before the forge; returns its port.
async fn secure(folder: &Path, forge: std::net::SocketAddr) -> u16 {
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    openssl(
        folder,
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-authority -addext basicConstraints=critical,CA:TRUE",
    );
    openssl(folder, "req -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj /CN=localhost");
    openssl(
        folder,
        "x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out tls.pem -extfile names",
    );
    let chain = vec![CertificateDer::from_pem_file(folder.join("tls.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join("tls.key")).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((outer, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let (Ok(mut outer), Ok(mut inner)) = (acceptor.accept(outer).await, TcpStream::connect(forge).await)
                else {
                    return;
                };
                drop(tokio::io::copy_bidirectional(&mut outer, &mut inner).await);
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_over_https_plans_applies_and_proposes() {
    let files = [
        environment("dev", "onMerge: apply"),
        component("network", "dev", "root: tf/network", ""),
        module("network", "resource \"world_file\" \"gateway\" {\n  path = \"gateway\"\n  content = \"10.0.0.1\"\n}"),
    ];
    let keys = tempfile::tempdir().unwrap();
    let public = app_key(keys.path());
    let mut stage = Stage::with_app(&files, json!({"id": 77, "slug": "keeper", "publicKey": public})).await;
    let port = secure(keys.path(), stage.forge.address).await;
    let base = format!("https://localhost:{port}");
    stage.config["repository"]["url"] = format!("{base}/acme/infra.git").into();
    stage.config["github"] = json!({"baseUrl": base, "app": {"id": 77, "privateKeyFile": keys.path().join("app.pem")}, "webhookSecretFile": stage.place("hook")});
    stage.serve_with(&[("SSL_CERT_FILE", &keys.path().join("ca.pem"))]);
    stage.ready().await;
    stage.verdict("dev/network", Verdict::InSync).await;
    std::fs::write(stage.place("world/gateway"), "10.9.9.9").unwrap();
    stage.drift("dev");
    let proposal = stage.proposal().await;
    assert_eq!(proposal["user"]["login"], "keeper[bot]");
    let number = proposal["number"].as_u64().unwrap();
    // Send the command twice, so that the daemon has to find its own comment again.
    for _ in 0..2 {
        stage.say("lin", number, "/plan").await;
    }
    stage.merge("lin", number).await;
    stage.verdict("dev/network", Verdict::InSync).await;
    assert_eq!(stage.world("gateway"), "10.0.0.1");
    let comments = stage.until("a comment of the run", async || {
        let (_, all) =
            stage.forge("lin", Method::GET, &format!("issues/{number}/comments?per_page=100"), Value::Null).await;
        let runs: Vec<String> = all
            .as_array()?
            .iter()
            .filter(|c| c["user"]["login"] == "keeper[bot]")
            .filter_map(|c| Some(c["body"].as_str()?.to_owned()))
            .filter(|body| body.starts_with("### Applied"))
            .collect();
        (!runs.is_empty()).then_some(runs)
    });
    assert_eq!(comments.await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_nobody_vouches_for_is_refused_and_the_daemon_says_so() {
    let files = [environment("dev", "onMerge: apply")];
    let keys = tempfile::tempdir().unwrap();
    let mut stage = Stage::new(&files).await;
    let port = secure(keys.path(), stage.forge.address).await;
    stage.config["repository"]["url"] = format!("https://localhost:{port}/acme/infra.git").into();
    stage.config["github"]["baseUrl"] = format!("https://localhost:{port}").into();
    stage.serve();
    let reason = stage.until("the daemon says why it knows nothing", async || {
        let status = stage.get("/api/v1/status").await;
        status["reason"].as_str().map(str::to_owned)
    });
    let reason = reason.await;
    assert!(reason.contains("certificate"), "{reason}");
    assert_eq!(stage.get("/api/v1/status").await["verdict"], "unknown");
}
