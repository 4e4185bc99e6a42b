//! Which addresses a webhook may be at: not those of this machine, its networks, or its cloud's metadata.
//!
//! Looked at where a connection is made, so that a name that means another address a moment later gains nothing.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// Networks that are not the public Internet (IANA's special-purpose registries for IPv4 and IPv6, RFC 6890): what is there is this
/// machine, its neighbours, or nobody.
const NOT_PUBLIC_V4: [(Ipv4Addr, u8); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    // Azure's own address for what a machine asks of its host.
    (Ipv4Addr::new(168, 63, 129, 16), 32),
];
/// Of IPv6, only this is given to anybody.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// Of that, not these: Teredo and others of the registry, documentation, 6to4 (which has an IPv4 address in it).
const NOT_PUBLIC_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Whether an address belongs to the public Internet.
pub fn is_public(ip: IpAddr) -> bool {
    let within = |net: IpNet| net.contains(&ip.to_canonical());
    let v4 = |(ip, bits): &(Ipv4Addr, u8)| Ipv4Net::new(*ip, *bits).is_ok_and(|net| within(net.into()));
    let v6 = |(ip, bits): &(Ipv6Addr, u8)| Ipv6Net::new(*ip, *bits).is_ok_and(|net| within(net.into()));
    match ip.to_canonical() {
        IpAddr::V4(_) => !NOT_PUBLIC_V4.iter().any(v4),
        IpAddr::V6(_) => v6(&GLOBAL_V6) && !NOT_PUBLIC_V6.iter().any(v6),
    }
}

/// Whether a URL names an address that is not public, without asking anybody.
pub fn is_private_host(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).trim_end_matches('.');
    let local = host == "localhost" || host.ends_with(".localhost");
    local || host.parse::<IpAddr>().is_ok_and(|ip| !is_public(ip))
}

/// A name means no public address.
#[derive(Debug, thiserror::Error)]
#[error("it has no public address")]
pub struct NotPublic;

/// Those of a name's addresses that may be dialled.
///
/// # Errors
/// [`NotPublic`], when there is none among them.
pub fn public(found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, NotPublic> {
    let public: Vec<SocketAddr> = found.filter(|at| is_public(at.ip())).collect();
    if public.is_empty() { Err(NotPublic) } else { Ok(public) }
}

/// Finds addresses for connections, and only public ones: what it finds is what is dialled.
#[derive(Debug)]
pub struct Public;

impl Resolve for Public {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: io::Result<Vec<SocketAddr>> =
                tokio::net::lookup_host((name.as_str(), 0)).await.map(Iterator::collect);
            Ok(Box::new(public(found?.into_iter())?.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_known_in_every_form() {
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "168.63.129.16",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "198.19.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["1.1.1.1", "100.63.0.1", "172.32.0.1", "169.253.0.1", "2606:4700::1111", "2a00:1450::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn of_a_names_addresses_only_public_ones_are_dialled() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let mixed = [at("127.0.0.1"), at("1.1.1.1"), at("fd00::1")];
        assert_eq!(public(mixed.into_iter()).unwrap(), [at("1.1.1.1")]);
        assert!(public([at("10.0.0.1")].into_iter()).is_err() && public(std::iter::empty()).is_err());
    }

    #[test]
    fn a_host_is_read_as_it_would_be_dialled() {
        for (url, private) in [
            ("http://localhost/", true),
            ("http://a.localhost/", true),
            ("http://LOCALHOST./", true),
            ("http://2130706433/", true),
            ("http://0177.0.0.1/", true),
            ("http://[::1]:80/", true),
            ("http://169.254.169.254/latest", true),
            ("https://example.com/", false),
            ("https://1.1.1.1/", false),
        ] {
            assert_eq!(is_private_host(&Url::parse(url).unwrap()), private, "{url}");
        }
    }
}
