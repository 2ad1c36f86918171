from __future__ import annotations

import numpy as np

from .bayesian import Bayesian


class Auto(Bayesian):
    most=192
    pool=256
    m=0.1
    ladder=8
    single=0
    def design(self):
        lad=[self.space.decode(np.full(len(self.space),t)) for t in np.linspace(0,1,self.ladder)]
        one=[]
        d=len(self.space)
        if self.single:
            for k in range(d):
                r=np.zeros(d,int); r[k]=self.space.counts[k]-1
                one.append(self.space.candidate(r))
        return list(dict.fromkeys(lad+one))
    def worth(self, away, reach):
        return np.arctan(away/(self.m*reach)) if reach>0 else away
