//! Who this process is to others: nobody on loopback, a certificate beyond it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::NetError;

/// Paths of PEM files; the `[tls]` section of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate authority that signed every member of the cluster.
    pub ca: PathBuf,
    /// This member's certificate, with any intermediate ones after it. Its DNS names include the member's name.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
}

impl TlsFiles {
    /// The same files, relative paths being relative to `base`.
    pub fn relative_to(self, base: &Path) -> Self {
        Self {
            ca: base.join(self.ca),
            certificate: base.join(self.certificate),
            key: base.join(self.key),
        }
    }
}

/// What a process shows to others and asks of them.
#[derive(Clone)]
pub enum Identity {
    /// Nothing: loopback only.
    Loopback,
    /// Mutual TLS: both sides show a certificate of one authority.
    Mutual(Tls),
}

/// Ready-made TLS configuration of both directions.
#[derive(Clone)]
pub struct Tls {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl Identity {
    /// The identity that an optional `[tls]` section asks for.
    pub fn from_config(files: Option<&TlsFiles>) -> Result<Self, NetError> {
        files.map_or(Ok(Self::Loopback), Self::from_files)
    }

    /// Reads an identity from PEM files.
    pub fn from_files(files: &TlsFiles) -> Result<Self, NetError> {
        let authorities = certificates(&files.ca, "the certificate authority")?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| NetError::Certificate {
                path: files.ca.clone(),
                problem: format!("this is no certificate authority: {error}"),
            })?;
        }
        let chain = certificates(&files.certificate, "the certificate")?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| NetError::File {
            path: files.key.clone(),
            what: "the private key",
            problem: error.to_string(),
        })?;
        let wrong = |problem: String| NetError::Certificate {
            path: files.certificate.clone(),
            problem,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| wrong(format!("certificate and key do not fit: {error}")))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(error.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|error| wrong(format!("certificate and key do not fit: {error}")))?;
        Ok(Self::Mutual(Tls::new(server, client)))
    }
}

impl Tls {
    fn new(mut server: ServerConfig, client: ClientConfig) -> Self {
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self {
            server: Arc::new(server),
            client: Arc::new(client),
        }
    }
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, NetError> {
    let file = |problem| NetError::File {
        path: path.to_owned(),
        what,
        problem,
    };
    let found = CertificateDer::pem_file_iter(path)
        .map_err(|error| file(error.to_string()))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| file(error.to_string()))?;
    if found.is_empty() {
        return Err(file("the file holds no PEM certificate".to_owned()));
    }
    Ok(found)
}
