//! Buckets of S3 and of what speaks like it (`s3://BUCKET/KEY`). Region, endpoint and credentials come from the environment, as
//! AWS's own programs name them: `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{
    TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    aws::AmazonS3Builder,
    client::{HttpClient, HttpConnector},
    path::Path as Key,
};
use reqwest::Client;

use super::{
    Listed,
    fetch::{Copy, FetchError, Limits, Opening, Source},
};

/// Buckets, opened as they are named.
#[derive(Debug)]
pub(super) struct Buckets {
    client: Client,
    limits: Limits,
    open: Mutex<BTreeMap<String, Arc<dyn ObjectStore>>>,
}

/// The relay's own client, so that its certificates and its TLS are used.
#[derive(Debug)]
struct Connector(Client);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

impl Buckets {
    pub(super) fn new(client: Client, limits: Limits) -> Self {
        Self { client, limits, open: Mutex::default() }
    }

    /// The bucket and the key of a place.
    fn at<'a>(&self, place: &'a str) -> Result<(Arc<dyn ObjectStore>, &'a str, &'a str), FetchError> {
        let unknown = || FetchError::Unknown(format!("found `{place}`, allowed is s3://BUCKET/KEY"));
        let rest = place.strip_prefix("s3://").ok_or_else(unknown)?;
        let (name, key) = rest.split_once('/').ok_or_else(unknown)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = open.get(name) {
            return Ok((Arc::clone(bucket), name, key));
        }
        let plain = std::env::var("AWS_ENDPOINT_URL").is_ok_and(|endpoint| endpoint.starts_with("http://"));
        let builder = AmazonS3Builder::from_env().with_bucket_name(name).with_allow_http(plain);
        let bucket = builder.with_http_connector(Connector(self.client.clone())).build().map_err(of_store)?;
        let bucket: Arc<dyn ObjectStore> = Arc::new(bucket);
        open.insert(name.to_owned(), Arc::clone(&bucket));
        Ok((bucket, name, key))
    }

    /// The objects below a place that ends in `/`, as they come.
    pub(super) fn list(&self, place: &str) -> BoxStream<'static, Result<Listed, FetchError>> {
        match self.objects(place) {
            Ok(objects) => objects,
            Err(error) => Box::pin(stream::iter([Err(error)])),
        }
    }

    fn objects(&self, place: &str) -> Result<BoxStream<'static, Result<Listed, FetchError>>, FetchError> {
        let (bucket, name, prefix) = self.at(place)?;
        let prefix =
            Key::parse(prefix.trim_end_matches('/')).map_err(|error| FetchError::Unknown(error.to_string()))?;
        let name = name.to_owned();
        let listed = move |object: ObjectMeta| {
            let url = format!("s3://{name}/{}", object.location);
            Listed { id: url.clone(), source: url, ..Listed::default() }
        };
        Ok(Box::pin(bucket.list(Some(&prefix)).map_ok(listed).map_err(of_store)))
    }

    /// A bucket that is somewhere else.
    #[cfg(test)]
    pub(super) fn put(&self, name: &str, bucket: Arc<dyn ObjectStore>) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), bucket);
    }
}

impl Source for Buckets {
    fn open<'a>(&'a self, place: &'a str) -> Opening<'a> {
        Box::pin(async move {
            let (bucket, _, key) = self.at(place)?;
            let path = Key::parse(key).map_err(|error| FetchError::Unknown(error.to_string()))?;
            let object = bucket.get(&path).await.map_err(of_store)?;
            if object.meta.size > self.limits.max_bytes {
                return Err(FetchError::TooLarge { most: self.limits.max_bytes });
            }
            let mut copy = Copy::new(&self.limits, key).await?;
            let mut pieces = object.into_stream();
            while let Some(piece) = pieces.try_next().await.map_err(of_store)? {
                copy.write(&piece).await?;
            }
            copy.done().await
        })
    }
}

fn of_store(error: object_store::Error) -> FetchError {
    match error {
        object_store::Error::NotFound { .. } => FetchError::Absent,
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            FetchError::Denied
        }
        other => FetchError::Broken(other.to_string()),
    }
}
