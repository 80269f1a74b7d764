//! Signed tokens (JWT), checked with the keys of a key set (JWKS).

use std::path::PathBuf;
use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::{TokenError, check_identity};
use crate::SpiffeId;

/// How far clocks may be apart.
const LEEWAY_SECONDS: u64 = 30;

/// Which signed tokens are believed.
#[derive(Clone, Debug)]
pub struct KeySetOptions {
    /// The key set, JSON (RFC 7517); keys for signing with RSA, ECDSA or EdDSA.
    pub file: PathBuf,
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must be or contain; `outrigger-ca` unless told otherwise.
    pub audience: String,
    /// The claim that names the workload: a SPIFFE ID, `<namespace>/<service account>`, or as Kubernetes
    /// writes it in `sub`, `system:serviceaccount:<namespace>:<service account>`.
    pub claim: String,
}

/// Why a key set can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    #[error("the key set `{path}` can't be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the key set `{path}` is no JSON of the shape {{\"keys\": [...]}}: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the key set `{path}` holds no RSA, ECDSA or EdDSA key for signatures")]
    NoKey { path: PathBuf },
}

struct Key {
    id: Option<String>,
    /// The algorithm that the key is bound to, as in a token's header.
    algorithm: Option<String>,
    key: DecodingKey,
}

pub(super) struct KeySet {
    keys: Vec<Key>,
    options: KeySetOptions,
    trust_domain: Arc<str>,
}

impl KeySet {
    pub fn load(options: &KeySetOptions, trust_domain: &Arc<str>) -> Result<Self, KeySetError> {
        let path = &options.file;
        let json = std::fs::read(path).map_err(|source| KeySetError::Read { path: path.clone(), source })?;
        let set: JwkSet = serde_json::from_slice(&json)
            .map_err(|source| KeySetError::Json { path: path.clone(), source })?;
        let keys: Vec<Key> = set.keys.iter().filter_map(Key::new).collect();
        if keys.is_empty() {
            return Err(KeySetError::NoKey { path: path.clone() });
        }
        Ok(Self { keys, options: options.clone(), trust_domain: trust_domain.clone() })
    }

    pub fn verify(&self, token: &str) -> Result<SpiffeId, TokenError> {
        // A header that names no known algorithm (`none` is one) does not decode.
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Algorithm)?;
        let hmac = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        if hmac.contains(&header.alg) {
            return Err(TokenError::Algorithm);
        }
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.options.audience]);
        validation.set_issuer(&[&self.options.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        let algorithm = format!("{:?}", header.alg);
        let candidates = self.keys.iter().filter(|key| {
            (header.kid.is_none() || key.id == header.kid)
                && key.algorithm.as_ref().is_none_or(|bound| *bound == algorithm)
        });
        let mut refusal = TokenError::Signature;
        for candidate in candidates {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &candidate.key, &validation) {
                Ok(data) => return self.identity(&data.claims),
                Err(error) => match self.refusal(error.kind()) {
                    TokenError::Signature => {}
                    other => refusal = other,
                },
            }
        }
        Err(refusal)
    }

    fn refusal(&self, kind: &ErrorKind) -> TokenError {
        match kind {
            ErrorKind::ExpiredSignature => TokenError::Expired,
            ErrorKind::ImmatureSignature => TokenError::NotYet,
            ErrorKind::InvalidAudience => TokenError::Audience(self.options.audience.clone()),
            ErrorKind::InvalidIssuer => TokenError::Issuer(self.options.issuer.clone()),
            ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
                TokenError::Claim(claim.clone())
            }
            _ => TokenError::Signature,
        }
    }

    fn identity(&self, claims: &Map<String, Value>) -> Result<SpiffeId, TokenError> {
        let name = &self.options.claim;
        let text = claims.get(name).and_then(Value::as_str).ok_or_else(|| TokenError::Claim(name.clone()))?;
        let account = text
            .strip_prefix("system:serviceaccount:")
            .and_then(|rest| rest.split_once(':'))
            .or_else(|| text.split_once('/'));
        let id = if text.starts_with("spiffe://") {
            text.parse()
        } else if let Some((namespace, account)) = account {
            SpiffeId::new(&self.trust_domain, namespace, account)
        } else {
            return Err(TokenError::Identity(format!(
                "the claim `{name}` must be a SPIFFE ID, <namespace>/<service account>, or system:serviceaccount:<namespace>:<service account>"
            )));
        };
        let id: SpiffeId = id.map_err(|error| TokenError::Identity(error.to_string()))?;
        check_identity(&id, &self.trust_domain).map_err(TokenError::Identity)?;
        Ok(id)
    }
}

impl Key {
    fn new(jwk: &Jwk) -> Option<Self> {
        // A symmetric key in a file that anybody may read would let anybody sign.
        let asymmetric = matches!(
            jwk.algorithm,
            AlgorithmParameters::RSA(_)
                | AlgorithmParameters::EllipticCurve(_)
                | AlgorithmParameters::OctetKeyPair(_)
        );
        let for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
        if !asymmetric || !for_signatures {
            tracing::warn!(kid = ?jwk.common.key_id, "a key that signs no tokens is passed over");
            return None;
        }
        let key = DecodingKey::from_jwk(jwk)
            .inspect_err(|error| {
                tracing::warn!(kid = ?jwk.common.key_id, %error, "a key that can't be read is passed over");
            })
            .ok()?;
        Some(Self {
            id: jwk.common.key_id.clone(),
            algorithm: jwk.common.key_algorithm.map(|bound| bound.to_string()),
            key,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use rcgen::KeyPair;
    use serde_json::json;

    use super::*;

    pub(crate) fn options(file: PathBuf) -> KeySetOptions {
        KeySetOptions {
            file,
            issuer: "https://issuer".into(),
            audience: "outrigger-ca".into(),
            claim: "sub".into(),
        }
    }

    fn load(keys: &Value, claim: &str) -> Result<KeySet, KeySetError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), json!({ "keys": keys }).to_string()).unwrap();
        let options = KeySetOptions { claim: claim.into(), ..options(file.path().into()) };
        KeySet::load(&options, &"cluster.local".into())
    }

    pub(crate) fn ec_key() -> (EncodingKey, Value) {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let point = key.public_key_raw();
        let (x, y) = point[1..].split_at(32);
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "kid": "k1", "use": "sig", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        });
        (EncodingKey::from_ec_der(&key.serialize_der()), jwk)
    }

    fn in_seconds(offset: i64) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        i64::try_from(now.as_secs()).unwrap() + offset
    }

    pub(crate) fn claims() -> Value {
        json!({
            "iss": "https://issuer", "aud": ["other", "outrigger-ca"], "exp": in_seconds(600),
            "nbf": in_seconds(-5), "sub": "system:serviceaccount:shop:web",
        })
    }

    pub(crate) fn token(algorithm: Algorithm, claims: &Value, key: &EncodingKey) -> String {
        encode(&header(algorithm), claims, key).unwrap()
    }

    fn header(algorithm: Algorithm) -> Header {
        let mut header = Header::new(algorithm);
        header.kid = Some("k1".into());
        header
    }

    #[test]
    fn each_claim_is_checked() {
        let (key, jwk) = ec_key();
        let set = load(&json!([jwk]), "sub").unwrap();
        type Change = fn(&mut Value);
        let table: [(&str, Change, &str); 12] = [
            ("as it is", |_| {}, ""),
            ("no nbf", |c| drop(c.as_object_mut().unwrap().remove("nbf")), ""),
            ("expired", |c| c["exp"] = in_seconds(-60).into(), "has expired"),
            ("not yet", |c| c["nbf"] = in_seconds(60).into(), "not valid yet"),
            ("no exp", |c| drop(c.as_object_mut().unwrap().remove("exp")), "`exp`"),
            ("wrong audience", |c| c["aud"] = "kubernetes".into(), "audience"),
            ("no audience", |c| drop(c.as_object_mut().unwrap().remove("aud")), "`aud`"),
            ("wrong issuer", |c| c["iss"] = "https://other".into(), "another issuer"),
            ("no subject", |c| drop(c.as_object_mut().unwrap().remove("sub")), "`sub`"),
            ("strange subject", |c| c["sub"] = "web".into(), "must be a SPIFFE ID"),
            ("the CA", |c| c["sub"] = "system:serviceaccount:outrigger:outrigger-ca".into(), "own identity"),
            ("slashes", |c| c["sub"] = "system:serviceaccount:shop:web/sa/root".into(), "no SPIFFE ID"),
        ];
        for (name, change, text) in table {
            let mut claims = claims();
            change(&mut claims);
            let token = token(Algorithm::ES256, &claims, &key);
            match set.verify(&token) {
                Ok(id) => {
                    assert_eq!(text, "", "{name}");
                    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/shop/sa/web", "{name}");
                }
                Err(error) => {
                    assert_ne!(text, "", "{name}: {error}");
                    assert!(error.to_string().contains(text), "{name}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_configured_claim_may_hold_an_id_or_an_account() {
        let (key, jwk) = ec_key();
        let set = load(&json!([jwk]), "workload").unwrap();
        for (value, good) in [
            ("spiffe://cluster.local/ns/shop/sa/web", true),
            ("shop/web", true),
            ("spiffe://example.org/ns/shop/sa/web", false),
            ("outrigger/outrigger-ca", false),
            ("outrigger/outrigger-discovery", true),
            ("shop/", false),
        ] {
            let mut claims = claims();
            claims["workload"] = value.into();
            let token = token(Algorithm::ES256, &claims, &key);
            assert_eq!(set.verify(&token).is_ok(), good, "{value}");
        }
    }

    #[test]
    fn forged_signatures_and_weak_algorithms_are_refused() {
        let (key, jwk) = ec_key();
        let (other_key, _) = ec_key();
        let public = jwk["x"].as_str().unwrap().to_owned();
        let set = load(&json!([jwk]), "sub").unwrap();
        let good = token(Algorithm::ES256, &claims(), &key);
        assert!(set.verify(&good).is_ok());

        let forged = token(Algorithm::ES256, &claims(), &other_key);
        assert_eq!(set.verify(&forged), Err(TokenError::Signature));

        let mut unknown = header(Algorithm::ES256);
        unknown.kid = Some("k2".into());
        let unknown = encode(&unknown, &claims(), &key).unwrap();
        assert_eq!(set.verify(&unknown), Err(TokenError::Signature));

        let secret = EncodingKey::from_secret(public.as_bytes());
        let hmac = token(Algorithm::HS256, &claims(), &secret);
        assert_eq!(set.verify(&hmac), Err(TokenError::Algorithm));

        let body = good.split('.').nth(1).unwrap();
        let none = URL_SAFE_NO_PAD.encode("{\"alg\":\"none\",\"kid\":\"k1\"}");
        for signature in ["", "AAAA"] {
            let token = format!("{none}.{body}.{signature}");
            assert_eq!(set.verify(&token), Err(TokenError::Algorithm));
        }
        for garbage in ["", "..", "a.b.c", "a.b"] {
            assert!(set.verify(garbage).is_err(), "{garbage}");
        }
    }

    #[test]
    fn symmetric_and_encryption_keys_make_no_key_set() {
        let (_, mut encryption) = ec_key();
        encryption["use"] = "enc".into();
        let symmetric = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 32])});
        for keys in [json!([]), json!([symmetric]), json!([encryption])] {
            assert!(matches!(load(&keys, "sub"), Err(KeySetError::NoKey { .. })));
        }
    }
}
