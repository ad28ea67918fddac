//! A newcomer of UDP beside more holders than the kernel cares to look at one by one: above ten it
//! looks for them by address (`udp_lib_get_port`).

use std::net::IpAddr;

use portwatch::diagnose::rules::{Endpoint, Search, verdict};
use portwatch::event::State;
use proptest::prelude::*;
use proptest::sample::select;

use crate::kernel::{Kept, Kernel, Plan, Said, mapped};

/// A case: a dozen sockets that differ by address alone, and one more.
#[derive(Debug, Clone)]
pub struct Crowd {
    holders: Plan,
    newcomer: Plan,
}

const HOLDERS: u8 = 12;

fn address_of(number: u8) -> IpAddr {
    [127, 0, 1, number].into()
}

fn plan(address: IpAddr, (reuseaddr, reuseport, uid): (bool, bool, u32)) -> Plan {
    Plan {
        tcp: false,
        address,
        v6only: false,
        reuseaddr,
        reuseport,
        uid,
        device: None,
    }
}

pub fn crowd() -> impl Strategy<Value = Crowd> {
    let flags = || (any::<bool>(), any::<bool>(), select(vec![0, 1000]));
    let newcomer = select(vec![
        [0, 0, 0, 0].into(),
        address_of(5),
        [127, 0, 0, 1].into(),
        IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        mapped([127, 0, 1, 5]),
    ]);
    (flags(), flags(), newcomer, any::<bool>()).prop_map(|(holders, flags, newcomer, v6only)| {
        let newcomer = plan(newcomer, flags);
        let v6only = v6only && newcomer.address == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
        Crowd {
            holders: plan(address_of(0), holders),
            newcomer: Plan { v6only, ..newcomer },
        }
    })
}

/// What a case is counted as.
pub fn kind(crowd: &Crowd) -> String {
    let family = if crowd.newcomer.address.is_ipv4() {
        "udp4"
    } else {
        "udp6"
    };
    format!("{family} beside {HOLDERS}")
}

/// Does it. `flaw`: the kernel may overlook the others when the newcomer wants a wildcard.
pub fn agree(kernel: &mut Kernel, crowd: &Crowd, flaw: bool) -> Result<Said, String> {
    let mut kept = Kept::default();
    let port = kernel.port();
    let holders: Vec<Endpoint> = (1..=HOLDERS)
        .map(|number| {
            let plan = Plan {
                address: address_of(number),
                ..crowd.holders.clone()
            };
            let socket = plan.open();
            assert_eq!(plan.bind(&socket, port), Said::Granted);
            let endpoint = plan.has(&socket, State::Bound);
            kept.keep(socket);
            endpoint
        })
        .collect();
    let socket = crowd.newcomer.open();
    let said = crowd.newcomer.bind(&socket, port);
    kept.keep(socket);
    let newcomer = crowd.newcomer.wants(port);
    let conflict = holders
        .iter()
        .find_map(|holder| verdict(&newcomer, holder, Search::Named));
    let overlooked = flaw && said == Said::Granted && crowd.newcomer.address.is_unspecified();
    if overlooked || conflict.is_some() == (said == Said::Refused) {
        return Ok(said);
    }
    Err(format!(
        "the kernel said {said:?}, the rules {conflict:?}\n  newcomer {newcomer:?}\n  \
         {HOLDERS} holders like {:?}",
        holders[0]
    ))
}

/// Whether this kernel grants a wildcard beside more than ten specific addresses, which it must
/// not: 5.10 does.
pub fn wildcard_overlooks_many(kernel: &mut Kernel) -> bool {
    let plain = (false, false, 0);
    let crowd = Crowd {
        holders: plan(address_of(0), plain),
        newcomer: plan([0, 0, 0, 0].into(), plain),
    };
    agree(kernel, &crowd, true) == Ok(Said::Granted)
}
